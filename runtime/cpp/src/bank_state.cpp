#include "bank_state.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

constexpr std::size_t kNamesShown = 20;

}  // namespace

// A new entry without a row (under `writer`).
Bank::State::EntryPointer Bank::State::make_entry(const std::string& name) {
  auto entry = std::make_shared<Entry>();
  entry->name = name;
  entry->generation = ++generations;
  return entry;
}

// The entries of names, in their order (under `mutex`).
std::vector<Bank::State::EntryPointer> Bank::State::resolve(const std::set<std::string>& names) const {
  std::vector<EntryPointer> found;
  std::vector<Problem> problems;
  found.reserve(names.size());
  for (const std::string& name : names) {
    auto at = entries.find(name);
    if (at != entries.end()) {
      found.push_back(at->second);
    } else {
      problems.push_back({code::unknown_adapter, name, "a name that is not bound"});
    }
  }
  if (problems.empty()) return found;
  std::set<std::string> sorted;
  for (const auto& [name, entry] : entries) sorted.insert(name);
  std::string bound;
  std::size_t shown = 0;
  for (const std::string& name : sorted) {
    if (shown++ == kNamesShown) break;
    bound += (bound.empty() ? "" : ", ") + name;
  }
  for (Problem& problem : problems) {
    problem.expected = "a bound name (" + (bound.empty() ? "none" : bound) + ")";
    problem.mend = "engine.bind(name, path), or `adexport bind`";
  }
  throw Error(Kind::unknown_adapter, "unknown adapter", std::move(problems));
}

// Let a name be this entry; the earlier one's row retires (under `mutex`), and it is given back: to free
// what it holds takes longer than the lock should be held.
Bank::State::EntryPointer Bank::State::install(const EntryPointer& entry) {
  EntryPointer& place = entries[entry->name];
  if (place) forget(*place);
  return std::exchange(place, entry);
}

// Retire an entry's row (under `mutex`).
void Bank::State::forget(Entry& entry) noexcept {
  if (!entry.held) return;
  holders[static_cast<std::size_t>(entry.held->row)] = nullptr;
  entry.held = nullptr;
}

// A row that nobody holds and no run has leased, or -1 (under `mutex`).
std::int64_t Bank::State::idle_row() const noexcept {
  for (std::size_t row = 1; row < leases.size(); ++row) {
    if (!holders[row] && leases[row] == 0) return static_cast<std::int64_t>(row);
  }
  return -1;
}

// Make sure that a row is free, if the bank may grow; false if it is full.
bool Bank::State::grow_for_one() {
  {
    Guard guard(mutex);
    if (idle_row() >= 0) return true;
  }
  std::size_t rows = 2 * leases.size();
  if (limit > 0) rows = std::min(rows, 1 + static_cast<std::size_t>(limit));
  if (rows == leases.size()) return false;
  reshape(widths, rows);
  return true;
}

// A row that is nobody's; with `kept`, it may evict the least recently used of others, or wait for a run to end.
std::int64_t Bank::State::free_row(const std::set<std::string>* kept) {
  grow_for_one();
  Guard guard(mutex);
  while (true) {
    const std::int64_t row = idle_row();
    if (row >= 0) return row;
    if (kept == nullptr) throw std::logic_error("no row is free in a bank that has grown for one");
    Entry* oldest = nullptr;
    for (std::size_t at = 1; at < holders.size(); ++at) {
      Entry* holder = holders[at].get();
      if (holder == nullptr || leases[at] != 0 || kept->count(holder->name) != 0) continue;
      if (oldest == nullptr || holder->used < oldest->used) oldest = holder;
    }
    if (oldest != nullptr) {
      forget(*oldest);
    } else {
      given_back.wait(guard);
    }
  }
}

void Bank::State::load(Entry& entry) {
  if (entry.tensors) return;
  RowTensors loaded = entry.load();
  entry.widths = layout.widths(loaded);
  entry.tensors = std::move(loaded);
}

// Fill an idle row (under `writer`; the row is nobody's meanwhile).
std::shared_ptr<const Lease::Held> Bank::State::fill(Entry& entry, std::int64_t row) {
  RowLayout::Widths needed = widths;
  for (std::size_t at = 0; at < needed.size(); ++at) needed[at] = std::max(needed[at], entry.widths[at]);
  if (needed != widths) reshape(rounded(needed), leases.size());
  for (std::size_t slot = 0; slot < arrays->arrays.size(); ++slot) {
    layout.fill(slot, arrays->arrays[slot], row, *entry.tensors);
  }
  auto held = std::make_shared<Lease::Held>();
  held->name = entry.name;
  held->row = row;
  held->generation = entry.generation;
  held->labels = entry.tensors->labels;
  held->sizes = layout.sizes(entry.widths);
  return held;
}

// Give a filled row to its entry (under `mutex`).
void Bank::State::publish(const EntryPointer& entry, std::shared_ptr<const Lease::Held> held) noexcept {
  holders[static_cast<std::size_t>(held->row)] = entry;
  entry->held = std::move(held);
}

// Let tensors go that no eviction will ask for: the row is the only copy that is needed (under `writer`).
void Bank::State::trim(Entry& entry) noexcept {
  if (limit == 0 && entry.held) entry.tensors.reset();
}

// Narrow the arrays when the widest adapter is gone: the others would pay for its rank.
void Bank::State::fit_widths() {
  RowLayout::Widths widest = layout.no_widths();
  for (const EntryPointer& holder : holders) {  // only writers change them
    if (!holder) continue;
    for (std::size_t at = 0; at < widest.size(); ++at) widest[at] = std::max(widest[at], holder->widths[at]);
  }
  widest = rounded(widest);
  if (widest == widths) return;
  try {
    reshape(widest, leases.size());
  } catch (const std::bad_alloc&) {  // the wide arrays serve as well
  }
}

// Replace the arrays by ones of other sizes, with the content of all resident rows.
void Bank::State::reshape(const RowLayout::Widths& wanted, std::size_t rows) {
  auto made = std::make_shared<BankArrays>();
  for (std::size_t slot = 0; slot < layout.slots().size(); ++slot) {
    BankArray array = layout.make(slot, wanted, static_cast<std::int64_t>(rows));
    if (arrays) {
      const BankArray& old = arrays->arrays[slot];
      const std::vector<std::int64_t> box = common_box(old, array);
      for (std::size_t row = 1; row < holders.size(); ++row) {
        if (!holders[row]) continue;
        copy_row(old, static_cast<std::int64_t>(row), array, static_cast<std::int64_t>(row), box);
      }
    }
    made->arrays.push_back(std::move(array));
  }
  made->layout = next_layout();
  RowLayout::Widths copy = wanted;
  std::shared_ptr<const BankArrays> old = std::move(made);
  Guard guard(mutex);
  holders.resize(rows);
  leases.resize(rows);
  widths.swap(copy);
  arrays.swap(old);
}

}  // namespace adexport::core
