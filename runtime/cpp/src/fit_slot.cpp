// Shapes and values of the factors of one slot.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "fit.hpp"
#include "slots.hpp"

namespace adexport::core {
namespace {

Problem wrong_shape(const std::string& name, std::string got, std::string expected, const Manifest& manifest) {
  return {code::wrong_shape,
          name,
          std::move(got),
          std::move(expected),
          "trained on another base than " + manifest.base_name,
          "bind it to a bundle of its own base"};
}

// The declared sizes behind the rows, ragged ones by the last part of their names.
std::string text_of_shape(const std::vector<Size>& declared) {
  std::string text = "[";
  for (std::size_t index = 1; index < declared.size(); ++index) {
    const std::string size = text_of(declared[index]);
    text += (index > 1 ? ", " : "") + size.substr(size.rfind('.') + 1);
  }
  return text + "]";
}

std::string text_of_shape(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t index = 0; index < shape.size(); ++index) {
    text += (index > 0 ? ", " : "") + std::to_string(shape[index]);
  }
  return text + "]";
}

// As Python's format has it, whatever the locale.
std::string six_digits(double value) {
  std::array<char, 64> buffer{};
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::general, 6).ptr;
  return {buffer.data(), end};
}

// NaN, infinity, and what would become infinite in the slot's element type.
std::optional<Problem> value_problem(const SlotInput& slot, const TensorView& tensor, const Manifest& manifest) {
  const std::size_t count = tensor.bytes / sizeof(float);
  std::size_t strange = 0;
  float most = 0.0F;
  for (std::size_t index = 0; index < count; ++index) {
    float value = 0.0F;
    std::memcpy(&value, tensor.data + index * sizeof(float), sizeof value);
    if (std::isfinite(value)) {
      most = std::max(most, std::abs(value));
    } else {
      ++strange;
    }
  }
  if (strange > 0) {
    return Problem{
        code::not_finite,
        slot.name,
        std::to_string(strange) + " NaN or Inf of " + std::to_string(count) + " values (scaling included)",
        "finite values",
        "training diverged, or a damaged file",
        "train it again, or copy it again"};
  }
  const auto magnitude = static_cast<double>(most);
  const Element dtype = manifest.element(slot);
  const std::string option = slot.dtype.has_value() ? "--bank-dtype" : "--dtype";
  if (magnitude <= largest(dtype)) return std::nullopt;
  return Problem{code::overflow,
                 slot.name,
                 six_digits(magnitude) + " after scaling",
                 "at most " + six_digits(largest(dtype)) + " (" + name_of(dtype) + ")",
                 "the element type of the bundle is too small for these values",
                 "adexport build BUNDLE " + option + " bf16 (or fp32)"};
}

}  // namespace

std::vector<Problem> SlotCheck::problems(const Found& found, const std::optional<Limit>& limit) const {
  std::vector<Problem> problems;
  std::map<std::string, std::int64_t> ragged;
  for (const auto& [factor, tensor] : found) {
    const SlotInput& slot = *find(slots, factor);
    if (tensor->shape.size() + 1 != slot.shape.size()) {
      problems.push_back(
          wrong_shape(slot.name, "shape " + text_of_shape(tensor->shape), text_of_shape(slot.shape), manifest));
      continue;
    }
    for (std::size_t index = 0; index < tensor->shape.size(); ++index) {
      const std::int64_t size = tensor->shape[index];
      const Size& declared = slot.shape[index + 1];
      if (const auto* number = std::get_if<std::int64_t>(&declared)) {
        if (size == *number) continue;
        problems.push_back(
            wrong_shape(slot.name, std::to_string(size) + " features", std::to_string(*number), manifest));
        continue;
      }
      const std::int64_t first = ragged.emplace(std::get<std::string>(declared), size).first->second;
      if (first == size) continue;
      problems.push_back({code::wrong_shape, where,
                          std::to_string(size) + " in " + slot.name + ", " + std::to_string(first) + " elsewhere",
                          "one size", "an edited file", "save or bind the original adapter again"});
    }
    if (auto problem = value_problem(slot, *tensor, manifest)) problems.push_back(std::move(*problem));
  }
  std::int64_t widest = 0;
  for (const auto& size : ragged) widest = std::max(widest, size.second);
  if (limit.has_value() && limit->largest.has_value() && widest > *limit->largest) {
    problems.push_back({code::rank_above_max, where, std::string(limit->what) + " " + std::to_string(widest),
                        "at most " + std::to_string(*limit->largest), "the bundle was built for smaller adapters",
                        "adexport build BUNDLE with a larger " + std::string(limit->option)});
  }
  return problems;
}

}  // namespace adexport::core
