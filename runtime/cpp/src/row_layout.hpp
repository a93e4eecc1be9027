// How slot inputs lie in arrays that hold a row for each adapter: their shapes, identities and copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "bank.hpp"
#include "bound.hpp"
#include "manifest.hpp"

namespace adexport::core {

class RowLayout {
 public:
  using Widths = std::vector<std::int64_t>;  // one for each ragged size

  // `dtype` is that of slot inputs that do not name their own.
  RowLayout(std::vector<SlotInput> slots, Element dtype);

  [[nodiscard]] const std::vector<SlotInput>& slots() const { return slots_; }
  [[nodiscard]] Element element(std::size_t slot) const { return slots_[slot].dtype.value_or(dtype_); }
  [[nodiscard]] Widths no_widths() const { return Widths(symbols_.size(), 0); }

  // Errors are of Kind::adapter and name every tensor that does not fit its slot input.
  [[nodiscard]] Widths widths(const RowTensors& row) const;
  [[nodiscard]] Widths widths(const Sizes& sizes) const;
  // Those above 0, by name.
  [[nodiscard]] Sizes sizes(const Widths& widths) const;
  // The shape of one row.
  [[nodiscard]] std::vector<std::int64_t> shape(std::size_t slot, const Widths& widths) const;

  // An array of identities. Throws std::bad_alloc.
  [[nodiscard]] BankArray make(std::size_t slot, const Widths& widths, std::int64_t rows) const;
  // Let a row be the identity.
  void clear(std::size_t slot, const BankArray& array, std::int64_t row) const;
  // Fill a row, with the identity beyond the tensor and for slot inputs that are not named.
  void fill(std::size_t slot, const BankArray& array, std::int64_t row, const RowTensors& tensors) const;

 private:
  std::vector<SlotInput> slots_;
  Element dtype_;
  std::vector<std::string> symbols_;
  std::unordered_map<std::string, std::size_t> symbol_at_, slot_at_;
};

// Copy what lies within `box` from a row of one array to a row of another of the same type.
void copy_row(const BankArray& source, std::int64_t source_row, const BankArray& target, std::int64_t target_row,
              const std::vector<std::int64_t>& box);
// The part of a row that both arrays have.
std::vector<std::int64_t> common_box(const BankArray& left, const BankArray& right);

RowLayout::Widths rounded(const RowLayout::Widths& widths);
// A number for a new layout, above all earlier ones of the process.
std::uint64_t next_layout();

}  // namespace adexport::core
