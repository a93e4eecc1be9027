// Slot inputs that come with a row for each row of a batch, for graphs that do not pick rows themselves.
//
// Rows are copied in as they join and stay where they are: while a batch decodes, no step gathers
// anything, and a row keeps the weights that it began with. Not for several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bank.hpp"

namespace adexport::core {

class BatchRows {
 public:
  BatchRows(std::vector<SlotInput> slots, Element dtype, std::int64_t rows);
  ~BatchRows();
  BatchRows(const BatchRows&) = delete;
  BatchRows& operator=(const BatchRows&) = delete;

  // Fill a row with what a lease holds of `name`.
  void put(std::int64_t row, const Lease& lease, const std::string& name);
  // Let a row be the identity.
  void clear(std::int64_t row);
  // Let `target` be what `source` was, and `source` the identity.
  void move(std::int64_t source, std::int64_t target);
  [[nodiscard]] std::int64_t size() const;
  // Arrays in the order of the slot inputs; `layout` changes whenever arrays are replaced.
  [[nodiscard]] const BankArrays& arrays() const;
  [[nodiscard]] const std::vector<SlotInput>& slots() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace adexport::core
