// What a bank holds: the bindings of names, who holds which row, and the arrays.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "bank.hpp"
#include "row_layout.hpp"

namespace adexport::core {

// Whoever writes holds `writer`; the tables change under `mutex`, which is held only briefly.
struct Bank::State {
  // One binding of a name. A rebind makes a new entry, so a row belongs to one generation.
  struct Entry {
    std::string name;
    std::uint64_t generation = 0;
    Bank::Load load;
    std::optional<RowTensors> tensors;
    RowLayout::Widths widths;
    std::shared_ptr<const Lease::Held> held;  // while it has a row
    std::uint64_t used = 0;
  };
  using EntryPointer = std::shared_ptr<Entry>;
  using Guard = std::unique_lock<std::mutex>;

  State(std::vector<SlotInput> slots, Element dtype, std::int64_t rows)
      : layout(std::move(slots), dtype), limit(rows), widths(layout.no_widths()) {}

  RowLayout layout;
  std::int64_t limit;  // 0: none
  std::mutex writer;
  mutable std::mutex mutex;
  std::condition_variable given_back;
  std::unordered_map<std::string, EntryPointer> entries;
  std::vector<EntryPointer> holders{nullptr};
  std::vector<std::int64_t> leases{1};  // the identity is leased for ever: it is never written
  RowLayout::Widths widths;
  std::shared_ptr<const BankArrays> arrays;
  std::uint64_t ticks = 0, generations = 0;

  EntryPointer make_entry(const std::string& name);
  std::vector<EntryPointer> resolve(const std::set<std::string>& names) const;
  EntryPointer install(const EntryPointer& entry);
  void forget(Entry& entry) noexcept;
  std::int64_t idle_row() const noexcept;
  bool grow_for_one();
  std::int64_t free_row(const std::set<std::string>* kept);
  void load(Entry& entry);
  std::shared_ptr<const Lease::Held> fill(Entry& entry, std::int64_t row);
  void publish(const EntryPointer& entry, std::shared_ptr<const Lease::Held> held) noexcept;
  void trim(Entry& entry) noexcept;
  void fit_widths();
  void reshape(const RowLayout::Widths& wanted, std::size_t rows);
};

}  // namespace adexport::core
