#include "row_layout.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kStep = 8;  // the width of a vector register in float32

using Shape = std::vector<std::int64_t>;

std::size_t product(std::size_t left, std::int64_t right) {
  std::size_t result = 0;
  if (right < 0 || __builtin_mul_overflow(left, static_cast<std::size_t>(right), &result)) {
    throw std::bad_alloc();
  }
  return result;
}

// Zeros; calloc's, so that pages which nobody writes take no memory.
std::shared_ptr<void> zeros(std::size_t bytes) {
  if (bytes > SIZE_MAX - 2 * kAlignment) throw std::bad_alloc();
  std::size_t space = std::max<std::size_t>(bytes, 1) + kAlignment;
  void* base = std::calloc(1, space);
  if (base == nullptr) throw std::bad_alloc();
  const std::shared_ptr<void> owner(base, std::free);
  void* aligned = base;
  std::align(kAlignment, bytes, aligned, space);
  return {owner, aligned};
}

template <class Value>
void fill_with(void* target, std::size_t count, Value value) {
  std::fill_n(static_cast<Value*>(target), count, value);
}

void fill_ones(void* target, std::size_t count, Element element) {
  switch (element) {
    case Element::fp32:
      return fill_with(target, count, 1.0F);
    case Element::fp16:
      return fill_with(target, count, std::uint16_t{0x3C00});
    case Element::bf16:
      return fill_with(target, count, std::uint16_t{0x3F80});
    case Element::int64:
      return fill_with(target, count, std::int64_t{1});
    case Element::int32:
      return fill_with(target, count, std::int32_t{1});
  }
}

// How many elements lie in a row.
std::size_t row_count(const BankArray& array) {
  std::size_t count = 1;
  for (std::size_t axis = 1; axis < array.shape.size(); ++axis) {
    count *= static_cast<std::size_t>(array.shape[axis]);
  }
  return count;
}

std::byte* row_start(const BankArray& array, std::int64_t row) {
  return static_cast<std::byte*>(array.data.get()) +
         static_cast<std::size_t>(row) * row_count(array) * size_of(array.element);
}

// Call `copy(source offset, target offset, count)` for the runs of a box that lie together in both of two
// dense arrays, whose shapes begin at `source` and `target`. Offsets and counts are in elements.
template <class Copy>
void for_each_run(const Shape& box, const std::int64_t* source, const std::int64_t* target, Copy copy) {
  if (std::find(box.begin(), box.end(), 0) != box.end()) return;
  std::size_t axes = box.size(), run = 1, source_step = 1, target_step = 1;
  while (axes > 0) {  // the last axes, up to one that the box does not fill
    --axes;
    run *= static_cast<std::size_t>(box[axes]);
    source_step *= static_cast<std::size_t>(source[axes]);
    target_step *= static_cast<std::size_t>(target[axes]);
    if (box[axes] != source[axes] || box[axes] != target[axes]) break;
  }
  Shape at(axes, 0);
  while (true) {
    std::size_t source_offset = 0, target_offset = 0;
    for (std::size_t axis = 0; axis < axes; ++axis) {
      source_offset = source_offset * static_cast<std::size_t>(source[axis]) + static_cast<std::size_t>(at[axis]);
      target_offset = target_offset * static_cast<std::size_t>(target[axis]) + static_cast<std::size_t>(at[axis]);
    }
    copy(source_offset * source_step, target_offset * target_step, run);
    std::size_t axis = axes;
    while (axis > 0 && ++at[axis - 1] == box[axis - 1]) at[--axis] = 0;
    if (axis == 0) return;
  }
}

std::string text(const Shape& shape) {
  std::string made = "[";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    made += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  }
  return made + "]";
}

std::string text(const std::vector<Size>& shape) {
  std::string made = "[";
  for (std::size_t axis = 1; axis < shape.size(); ++axis) {
    const auto* fixed = std::get_if<std::int64_t>(&shape[axis]);
    made +=
        (axis == 1 ? "" : ", ") + (fixed != nullptr ? std::to_string(*fixed) : std::get<std::string>(shape[axis]));
  }
  return made + "]";
}

bool fits(const Shape& tensor, const std::vector<Size>& slot) {
  if (tensor.size() + 1 != slot.size()) return false;
  for (std::size_t axis = 0; axis < tensor.size(); ++axis) {
    const auto* fixed = std::get_if<std::int64_t>(&slot[axis + 1]);
    if (tensor[axis] < 0 || (fixed != nullptr && tensor[axis] > *fixed)) return false;
  }
  return true;
}

bool is_empty(const Shape& shape) {
  return std::find(shape.begin(), shape.end(), 0) != shape.end();
}

}  // namespace

RowLayout::RowLayout(std::vector<SlotInput> slots, Element dtype) : slots_(std::move(slots)), dtype_(dtype) {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    slot_at_.emplace(slots_[slot].name, slot);
    for (std::size_t axis = 1; axis < slots_[slot].shape.size(); ++axis) {
      const auto* symbol = std::get_if<std::string>(&slots_[slot].shape[axis]);
      if (symbol != nullptr && symbol_at_.emplace(*symbol, symbols_.size()).second) symbols_.push_back(*symbol);
    }
  }
}

RowLayout::Widths RowLayout::widths(const RowTensors& row) const {
  Widths made = no_widths();
  std::vector<Problem> problems;
  for (const auto& [name, tensor] : row.tensors) {
    auto found = slot_at_.find(name);
    if (found == slot_at_.end()) {
      problems.push_back({code::no_slot, name, "a tensor", "a slot input of the bundle"});
      continue;
    }
    const SlotInput& slot = slots_[found->second];
    if (!fits(tensor.shape, slot.shape)) {
      problems.push_back({code::wrong_shape, name, text(tensor.shape), text(slot.shape)});
      continue;
    }
    bool number = tensor.values == nullptr && !is_empty(tensor.shape);
    if (number != (element(found->second) == Element::int64)) {
      problems.push_back({code::wrong_dtype, name, number ? "int64" : "float32", name_of(element(found->second))});
      continue;
    }
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      const auto* symbol = std::get_if<std::string>(&slot.shape[axis + 1]);
      if (symbol == nullptr) continue;
      std::int64_t& width = made[symbol_at_.at(*symbol)];
      width = std::max(width, tensor.shape[axis]);
    }
  }
  if (!problems.empty()) throw Error(Kind::adapter, "the adapter does not fit", std::move(problems));
  return made;
}

RowLayout::Widths RowLayout::widths(const Sizes& sizes) const {
  Widths made = no_widths();
  for (const auto& [symbol, size] : sizes) {
    auto found = symbol_at_.find(symbol);
    if (found != symbol_at_.end()) made[found->second] = size;
  }
  return made;
}

Sizes RowLayout::sizes(const Widths& widths) const {
  Sizes made;
  for (std::size_t at = 0; at < widths.size(); ++at) {
    if (widths[at] > 0) made.emplace(symbols_[at], widths[at]);
  }
  return made;
}

std::vector<std::int64_t> RowLayout::shape(std::size_t slot, const Widths& widths) const {
  Shape made;
  for (std::size_t axis = 1; axis < slots_[slot].shape.size(); ++axis) {
    const Size& size = slots_[slot].shape[axis];
    const auto* fixed = std::get_if<std::int64_t>(&size);
    made.push_back(fixed != nullptr ? *fixed : widths[symbol_at_.at(std::get<std::string>(size))]);
  }
  return made;
}

BankArray RowLayout::make(std::size_t slot, const Widths& widths, std::int64_t rows) const {
  BankArray array;
  array.element = element(slot);
  array.shape = shape(slot, widths);
  array.shape.insert(array.shape.begin(), rows);
  std::size_t count = 1;
  for (std::int64_t size : array.shape) count = product(count, size);
  array.bytes = product(count, static_cast<std::int64_t>(size_of(array.element)));
  array.data = zeros(array.bytes);
  if (slots_[slot].ones) fill_ones(array.data.get(), count, array.element);
  return array;
}

void RowLayout::clear(std::size_t slot, const BankArray& array, std::int64_t row) const {
  const std::size_t count = row_count(array);
  if (slots_[slot].ones) {
    fill_ones(row_start(array, row), count, array.element);
  } else {
    std::memset(row_start(array, row), 0, count * size_of(array.element));
  }
}

void RowLayout::fill(std::size_t slot, const BankArray& array, std::int64_t row, const RowTensors& tensors) const {
  clear(slot, array, row);
  auto found = tensors.tensors.find(slots_[slot].name);
  if (found == tensors.tensors.end()) return;
  const RowTensor& tensor = found->second;
  std::byte* start = row_start(array, row);
  if (array.element == Element::int64) return fill_with(start, row_count(array), tensor.number);
  for_each_run(tensor.shape, tensor.shape.data(), array.shape.data() + 1,
               [&](std::size_t source, std::size_t target, std::size_t count) {
                 convert(tensor.values + source, count, array.element, start + target * size_of(array.element));
               });
}

void copy_row(const BankArray& source, std::int64_t source_row, const BankArray& target, std::int64_t target_row,
              const std::vector<std::int64_t>& box) {
  const std::byte* from = row_start(source, source_row);
  std::byte* to = row_start(target, target_row);
  const std::size_t size = size_of(source.element);
  for_each_run(box, source.shape.data() + 1, target.shape.data() + 1,
               [&](std::size_t source_offset, std::size_t target_offset, std::size_t count) {
                 std::memcpy(to + target_offset * size, from + source_offset * size, count * size);
               });
}

std::vector<std::int64_t> common_box(const BankArray& left, const BankArray& right) {
  Shape box;
  for (std::size_t axis = 1; axis < left.shape.size(); ++axis) {
    box.push_back(std::min(left.shape[axis], right.shape[axis]));
  }
  return box;
}

RowLayout::Widths rounded(const RowLayout::Widths& widths) {
  RowLayout::Widths made = widths;
  for (std::int64_t& width : made) width = (width + kStep - 1) / kStep * kStep;
  return made;
}

Sizes rounded(const Sizes& sizes) {
  Sizes made = sizes;
  for (auto& [symbol, size] : made) size = (size + kStep - 1) / kStep * kStep;
  return made;
}

std::uint64_t next_layout() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace adexport::core
