#include "bank.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "bank_state.hpp"
#include "errors.hpp"

namespace adexport::core {

Bank::Bank(std::vector<SlotInput> slots, Element dtype, std::int64_t rows) {
  if (rows < 0) {
    throw Error(
        Kind::request, "the engine is not opened",
        Problem{code::bad_input, "rows", std::to_string(rows), "at least 1, or 0 for as many as are bound"});
  }
  state_ = std::make_unique<State>(std::move(slots), dtype, rows);
  try {
    state_->reshape(state_->widths, 1 + static_cast<std::size_t>(rows == 0 ? 1 : rows));
  } catch (const std::exception& error) {  // no memory, or more than a vector may hold
    if (rows == 0) throw;
    throw Error(Kind::request, "the engine is not opened",
                Problem{code::bad_input, "rows", std::to_string(rows) + ": " + error.what(),
                        "what the memory holds", "", "fewer rows, or 0 for as many as are bound"});
  }
}

Bank::~Bank() = default;

void Bank::put(const std::string& name, RowTensors tensors) {
  State::Guard writing(state_->writer);
  const State::EntryPointer entry = state_->make_entry(name);
  entry->widths = state_->layout.widths(tensors);
  entry->tensors = std::move(tensors);
  std::shared_ptr<const Lease::Held> held;
  if (state_->grow_for_one()) held = state_->fill(*entry, state_->free_row(nullptr));
  State::EntryPointer earlier;
  {
    State::Guard guard(state_->mutex);
    earlier = state_->install(entry);
    if (held) state_->publish(entry, std::move(held));
  }
  state_->trim(*entry);
  state_->fit_widths();
}

void Bank::put_lazily(const std::string& name, Load load) {
  State::Guard writing(state_->writer);
  const State::EntryPointer entry = state_->make_entry(name);
  entry->load = std::move(load);
  State::EntryPointer earlier;
  {
    State::Guard guard(state_->mutex);
    earlier = state_->install(entry);
  }
  state_->fit_widths();
}

void Bank::drop(const std::string& name) {
  State::Guard writing(state_->writer);
  State::EntryPointer earlier;
  {
    State::Guard guard(state_->mutex);
    earlier = state_->resolve({name}).front();
    state_->forget(*earlier);
    state_->entries.erase(name);
  }
  state_->fit_widths();
}

// Lease if all rows are resident; else false.
bool Bank::lease_resident(const std::set<std::string>& names, Lease& lease) {
  std::vector<std::shared_ptr<const Lease::Held>> rows;
  rows.reserve(names.size());
  State::Guard guard(state_->mutex);
  const std::vector<State::EntryPointer> entries = state_->resolve(names);
  for (const State::EntryPointer& entry : entries) {
    if (!entry->held) return false;
    rows.push_back(entry->held);
  }
  for (const State::EntryPointer& entry : entries) {
    ++state_->leases[static_cast<std::size_t>(entry->held->row)];
    entry->used = ++state_->ticks;
  }
  lease.bank_ = this;
  lease.rows_ = std::move(rows);
  lease.arrays_ = state_->arrays;
  return true;
}

// Bring in what is not resident, then lease; one paging run at a time.
Lease Bank::lease_paged(const std::set<std::string>& names) {
  const std::int64_t limit = state_->limit;
  if (limit > 0 && names.size() > static_cast<std::size_t>(limit)) {
    const std::string most = std::to_string(limit);
    throw Error(Kind::bank_full, "the batch does not fit",
                Problem{code::bank_full, std::to_string(names.size()) + " different adapters in one batch", "",
                        "at most " + most + " (rows=" + most + ")", "",
                        "split the batch, or open the engine with more rows"});
  }
  Lease lease;
  State::Guard writing(state_->writer);
  while (!lease_resident(names, lease)) {
    std::vector<State::EntryPointer> absent;
    {
      State::Guard guard(state_->mutex);
      for (State::EntryPointer& entry : state_->resolve(names)) {
        if (!entry->held) absent.push_back(std::move(entry));
      }
    }
    for (const State::EntryPointer& entry : absent) {
      state_->load(*entry);
      auto held = state_->fill(*entry, state_->free_row(&names));
      {
        State::Guard guard(state_->mutex);
        state_->publish(entry, std::move(held));
      }
      state_->trim(*entry);
    }
    state_->fit_widths();
  }
  return lease;
}

Lease Bank::lease(const std::set<std::string>& names) {
  Lease lease;
  if (lease_resident(names, lease)) return lease;
  return lease_paged(names);
}

void Bank::check(const std::set<std::string>& names) const {
  State::Guard guard(state_->mutex);
  static_cast<void>(state_->resolve(names));
}

std::vector<std::string> Bank::names() const {
  std::vector<std::string> names;
  {
    State::Guard guard(state_->mutex);
    names.reserve(state_->entries.size());
    for (const auto& [name, entry] : state_->entries) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::int64_t Bank::capacity() const {
  State::Guard guard(state_->mutex);
  return static_cast<std::int64_t>(state_->leases.size()) - 1;
}

Lease::Lease(Lease&& other) noexcept
    : bank_(std::exchange(other.bank_, nullptr)),
      rows_(std::move(other.rows_)),
      arrays_(std::move(other.arrays_)) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  give_back();
  bank_ = std::exchange(other.bank_, nullptr);
  rows_ = std::move(other.rows_);
  arrays_ = std::move(other.arrays_);
  return *this;
}

Lease::~Lease() {
  give_back();
}

const Lease::Held& Lease::held(const std::string& name) const {
  auto found = std::lower_bound(rows_.begin(), rows_.end(), name,
                                [](const auto& row, const std::string& wanted) { return row->name < wanted; });
  if (found == rows_.end() || (*found)->name != name) throw std::out_of_range("the lease does not hold " + name);
  return **found;
}

void Lease::give_back() noexcept {
  if (bank_ == nullptr) return;
  Bank::State& state = *std::exchange(bank_, nullptr)->state_;
  {
    Bank::State::Guard guard(state.mutex);
    for (const auto& row : rows_) --state.leases[static_cast<std::size_t>(row->row)];
    state.given_back.notify_all();
  }
  rows_.clear();
  arrays_ = nullptr;
}

}  // namespace adexport::core
