#include "input_values.hpp"

#include <algorithm>
#include <limits>
#include <sstream>
#include <type_traits>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

std::size_t count_of(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const auto size : shape) count *= static_cast<std::size_t>(size);
  return count;
}

// Call `use` with the feed's values as a pointer of their type.
template <class Use>
auto with_values(const Feed& feed, Use use) {
  switch (feed.element) {
    case Element::fp32:
      return use(static_cast<const float*>(feed.data));
    case Element::int32:
      return use(static_cast<const std::int32_t*>(feed.data));
    case Element::int64:
      return use(static_cast<const std::int64_t*>(feed.data));
    case Element::fp16:
    case Element::bf16:
      break;
  }
  throw Error(Kind::request, "the inputs do not fit",
              Problem{code::bad_input, feed.name, numpy_name(feed.element), "float32, int64 or int32"});
}

template <class Value>
std::string text_of(Value value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

template <class Value>
std::pair<Value, Value> extremes(const Value* values, std::size_t count) {
  auto low = values[0], high = values[0];
  for (std::size_t at = 1; at < count; ++at) {
    low = values[at] < low ? values[at] : low;
    high = values[at] > high ? values[at] : high;
  }
  return {low, high};
}

// The least and the greatest value of an input that holds whole numbers.
std::pair<std::int64_t, std::int64_t> whole_range(const Input& spec) {
  const bool small = spec.dtype == Element::int32;
  using Small = std::numeric_limits<std::int32_t>;
  using Large = std::numeric_limits<std::int64_t>;
  return {spec.low.value_or(small ? Small::min() : Large::min()),
          spec.high.value_or(small ? Small::max() : Large::max())};
}

bool is_whole(Element element) {
  return element == Element::int64 || element == Element::int32;
}

template <class Value>
std::optional<Outside> outside(const Input& spec, const Value* values, std::size_t count) {
  const auto [low, high] = extremes(values, count);
  if (is_whole(spec.dtype)) {
    const auto [lowest, highest] = whole_range(spec);
    if (static_cast<std::int64_t>(low) >= lowest && static_cast<std::int64_t>(high) <= highest) return {};
    return Outside{text_of(low), text_of(high), text_of(lowest), text_of(highest)};
  }
  const bool below = spec.low && static_cast<double>(low) < static_cast<double>(*spec.low);
  const bool above = spec.high && static_cast<double>(high) > static_cast<double>(*spec.high);
  if (!below && !above) return {};
  return Outside{text_of(low), text_of(high), spec.low ? text_of(*spec.low) : "-inf",
                 spec.high ? text_of(*spec.high) : "inf"};
}

// Memory for `count` elements.
std::shared_ptr<void> room_for(std::size_t count, Element element) {
  const auto kept =
      std::make_shared<std::vector<std::int64_t>>(count * size_of(element) / sizeof(std::int64_t) + 1);
  return {kept, kept->data()};
}

template <class Value>
void put(const Value* values, std::size_t count, Element element, void* target) {
  if (element == Element::int64) {
    std::transform(values, values + count, static_cast<std::int64_t*>(target),
                   [](Value value) { return static_cast<std::int64_t>(value); });
  } else if (element == Element::int32) {
    std::transform(values, values + count, static_cast<std::int32_t*>(target),
                   [](Value value) { return static_cast<std::int32_t>(value); });
  } else {
    std::vector<float> floats(count);
    std::transform(values, values + count, floats.begin(), [](Value value) { return static_cast<float>(value); });
    convert(floats.data(), count, element, target);
  }
}

// What `look` says of each row of a mask, where it says true.
template <class Look>
std::vector<std::int64_t> rows_where(const Feed& mask, Look look) {
  const auto rows = static_cast<std::size_t>(mask.shape[0]), width = static_cast<std::size_t>(mask.shape[1]);
  return with_values(mask, [&](const auto* values) {
    std::vector<std::int64_t> found;
    for (std::size_t row = 0; row < rows; ++row) {
      if (look(row, values + row * width, width)) found.push_back(static_cast<std::int64_t>(row));
    }
    return found;
  });
}

}  // namespace

const char* numpy_name(Element element) {
  switch (element) {
    case Element::fp32:
      return "float32";
    case Element::fp16:
      return "float16";
    case Element::bf16:
      return "bfloat16";
    case Element::int64:
      return "int64";
    case Element::int32:
      return "int32";
  }
  return "";
}

bool fits_type(Element declared, Element given) {
  return !is_whole(declared) || is_whole(given);
}

std::optional<Outside> out_of_range(const Input& spec, const Feed& feed) {
  return with_values(feed, [&](const auto* values) { return outside(spec, values, count_of(feed.shape)); });
}

std::shared_ptr<void> converted(const Feed& feed, Element element) {
  const auto count = count_of(feed.shape);
  auto made = room_for(count, element);
  with_values(feed, [&](const auto* values) { put(values, count, element, made.get()); });
  return made;
}

std::shared_ptr<void> filled(std::int64_t value, Element element, const std::vector<std::int64_t>& shape) {
  const auto count = count_of(shape);
  auto made = room_for(count, element);
  if (element == Element::int64) {
    std::fill_n(static_cast<std::int64_t*>(made.get()), count, value);
  } else {
    const std::vector<std::int64_t> values(count, value);
    put(values.data(), count, element, made.get());
  }
  return made;
}

std::vector<std::int64_t> empty_rows(const Feed& mask) {
  return rows_where(mask, [](std::size_t, const auto* row, std::size_t width) {
    return std::all_of(row, row + width, [](auto value) { return value == 0; });
  });
}

std::vector<std::int64_t> row_sums(const Feed& mask) {
  std::vector<std::int64_t> sums;
  rows_where(mask, [&](std::size_t, const auto* row, std::size_t width) {
    std::int64_t sum = 0;
    for (std::size_t at = 0; at < width; ++at) sum += static_cast<std::int64_t>(row[at]);
    sums.push_back(sum);
    return false;
  });
  return sums;
}

std::vector<std::int64_t> rows_with_holes(const Feed& mask, const std::vector<std::int64_t>& lengths) {
  return rows_where(mask, [&](std::size_t row, const auto* values, std::size_t width) {
    for (std::size_t at = 0; at < width; ++at) {
      if ((values[at] != 0) != (static_cast<std::int64_t>(at) < lengths[row])) return true;
    }
    return false;
  });
}

}  // namespace adexport::core
