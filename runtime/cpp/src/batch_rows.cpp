#include "batch_rows.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

#include "row_layout.hpp"

namespace adexport::core {

struct BatchRows::State {
  State(std::vector<SlotInput> slots, Element dtype, std::int64_t count)
      : layout(std::move(slots), dtype), rows(static_cast<std::size_t>(count), layout.no_widths()) {}

  RowLayout layout;
  std::vector<RowLayout::Widths> rows;  // each row's own
  RowLayout::Widths widths;
  BankArrays arrays;

  void fit();
  void replace(RowLayout::Widths wanted);
  void clear(std::int64_t row);
};

// Let ragged sizes be as large as the widest row: all rows pay for it.
void BatchRows::State::fit() {
  RowLayout::Widths widest = layout.no_widths();
  for (const RowLayout::Widths& row : rows) {
    for (std::size_t at = 0; at < widest.size(); ++at) widest[at] = std::max(widest[at], row[at]);
  }
  widest = rounded(widest);
  if (widest != widths) replace(std::move(widest));
}

// All arrays or none: sizes that two arrays share stay the same.
void BatchRows::State::replace(RowLayout::Widths wanted) {
  std::vector<BankArray> made;
  for (std::size_t slot = 0; slot < layout.slots().size(); ++slot) {
    const BankArray* old = slot < arrays.arrays.size() ? &arrays.arrays[slot] : nullptr;
    const std::vector<std::int64_t> shape = layout.shape(slot, wanted);
    if (old != nullptr && std::equal(shape.begin(), shape.end(), old->shape.begin() + 1)) {
      made.push_back(*old);
      continue;
    }
    made.push_back(layout.make(slot, wanted, static_cast<std::int64_t>(rows.size())));
    if (old == nullptr) continue;
    const std::vector<std::int64_t> box = common_box(*old, made.back());
    for (std::int64_t row = 0; row < static_cast<std::int64_t>(rows.size()); ++row) {
      copy_row(*old, row, made.back(), row, box);
    }
  }
  arrays.arrays = std::move(made);
  arrays.layout = next_layout();
  widths = std::move(wanted);
}

void BatchRows::State::clear(std::int64_t row) {
  rows.at(static_cast<std::size_t>(row)) = layout.no_widths();
  for (std::size_t slot = 0; slot < arrays.arrays.size(); ++slot) layout.clear(slot, arrays.arrays[slot], row);
  try {
    fit();
  } catch (const std::bad_alloc&) {  // the wide arrays serve as well
  }
}

BatchRows::BatchRows(std::vector<SlotInput> slots, Element dtype, std::int64_t rows)
    : state_(std::make_unique<State>(std::move(slots), dtype, rows)) {
  state_->replace(state_->layout.no_widths());
}

BatchRows::~BatchRows() = default;

void BatchRows::put(std::int64_t row, const Lease& lease, const std::string& name) {
  const Lease::Held& held = lease.held(name);
  const std::vector<BankArray>& sources = lease.arrays()->arrays;
  const RowLayout::Widths own = state_->layout.widths(held.sizes);
  bool alike = sources.size() == state_->arrays.arrays.size();
  for (std::size_t slot = 0; alike && slot < sources.size(); ++slot) {
    const BankArray& target = state_->arrays.arrays[slot];
    alike = sources[slot].element == target.element && sources[slot].shape.size() == target.shape.size();
  }
  if (!alike) throw std::invalid_argument("the lease is of a bank with other slot inputs");
  state_->rows.at(static_cast<std::size_t>(row)) = own;
  try {
    state_->fit();
  } catch (const std::bad_alloc&) {
    clear(row);
    throw;
  }
  for (std::size_t slot = 0; slot < sources.size(); ++slot) {
    const BankArray& target = state_->arrays.arrays[slot];
    state_->layout.clear(slot, target, row);
    copy_row(sources[slot], held.row, target, row, state_->layout.shape(slot, own));
  }
}

void BatchRows::clear(std::int64_t row) {
  state_->clear(row);
}

void BatchRows::move(std::int64_t source, std::int64_t target) {
  if (source == target) return;
  state_->rows.at(static_cast<std::size_t>(target)) = state_->rows.at(static_cast<std::size_t>(source));
  for (const BankArray& array : state_->arrays.arrays) {
    copy_row(array, source, array, target, common_box(array, array));
  }
  state_->clear(source);
}

std::int64_t BatchRows::size() const {
  return static_cast<std::int64_t>(state_->rows.size());
}

const BankArrays& BatchRows::arrays() const {
  return state_->arrays;
}

const std::vector<SlotInput>& BatchRows::slots() const {
  return state_->layout.slots();
}

}  // namespace adexport::core
