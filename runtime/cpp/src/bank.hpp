// The resident weights of many adapters: one array for each slot input, one row for each adapter.
//
// Row 0 is the identity and never changes. A run leases its rows; a leased row is never written. A rebind
// takes a fresh row and retires the old one; runs that hold the old row finish on it. Arrays are replaced,
// never resized: a lease keeps those that it was given.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "bound.hpp"
#include "manifest.hpp"

namespace adexport::core {

// One slot input of all rows, 64-byte aligned.
struct BankArray {
  Element element = Element::fp32;
  std::vector<std::int64_t> shape;  // [rows, …]
  std::shared_ptr<void> data;
  std::size_t bytes = 0;
};

// The arrays of one layout, in the order of the slot inputs.
struct BankArrays {
  std::uint64_t layout = 0;  // grows whenever arrays are replaced
  std::vector<BankArray> arrays;
};

using Sizes = std::map<std::string, std::int64_t>;  // ragged sizes by their name

class Bank;

// The rows that a run may read; gives them back when it goes. The bank must outlive it.
class Lease {
 public:
  // What a row holds; shared with the bank, so that a lease copies nothing.
  struct Held {
    std::string name;
    std::int64_t row = 0;
    std::uint64_t generation = 0;
    std::optional<std::vector<std::string>> labels;
    Sizes sizes;  // its own ragged sizes
  };

  Lease() = default;
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease();

  // `name` must be one that was asked for.
  [[nodiscard]] const Held& held(const std::string& name) const;
  [[nodiscard]] const std::shared_ptr<const BankArrays>& arrays() const { return arrays_; }

 private:
  friend class Bank;
  void give_back() noexcept;

  Bank* bank_ = nullptr;
  std::vector<std::shared_ptr<const Held>> rows_;  // sorted by name
  std::shared_ptr<const BankArrays> arrays_;
};

// Safe to use from several threads.
class Bank {
 public:
  // Called while the bank is locked for writers: it must not use the bank.
  using Load = std::function<RowTensors()>;

  // `rows`: how many adapters may be resident at once; 0 grows as needed. Those beyond it stay in host
  // memory and take the place of the least recently used. Throws Kind::request where it is negative.
  Bank(std::vector<SlotInput> slots, Element dtype, std::int64_t rows = 0);
  ~Bank();
  Bank(const Bank&) = delete;
  Bank& operator=(const Bank&) = delete;

  // Bind `name` (again). Throws Kind::adapter where tensors do not fit their slots; then nothing changes.
  void put(const std::string& name, RowTensors tensors);
  // Bind `name` to weights that are read when a run first asks for them.
  void put_lazily(const std::string& name, Load load);
  // Throws Kind::unknown_adapter.
  void drop(const std::string& name);
  // Hold the rows of `names`; waits where every row is held by others. Throws Kind::unknown_adapter,
  // Kind::bank_full, and what loading throws.
  Lease lease(const std::set<std::string>& names);
  // Throws Kind::unknown_adapter, naming every name that is not bound.
  void check(const std::set<std::string>& names) const;
  [[nodiscard]] std::vector<std::string> names() const;
  // Rows for adapters in the present arrays.
  [[nodiscard]] std::int64_t capacity() const;

 private:
  friend class Lease;
  struct State;
  bool lease_resident(const std::set<std::string>& names, Lease& lease);
  Lease lease_paged(const std::set<std::string>& names);

  std::unique_ptr<State> state_;
};

// Ragged sizes as arrays have them: rounded up to the width of a vector register.
Sizes rounded(const Sizes& sizes);

}  // namespace adexport::core
