#include "element.hpp"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cstring>
#include <limits>

#include "errors.hpp"

namespace adexport::core {
namespace {

struct Entry {
  Element element;
  const char* name;
  std::size_t size;
};

constexpr std::array<Entry, 5> entries = {{
    {Element::fp32, "fp32", 4},
    {Element::fp16, "fp16", 2},
    {Element::bf16, "bf16", 2},
    {Element::int64, "int64", 8},
    {Element::int32, "int32", 4},
}};

const Entry& entry_of(Element element) {
  return entries.at(static_cast<std::size_t>(element));
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Drop the lowest bits, to the nearest and to even; a carry runs on into the exponent, as it must.
std::uint32_t shift_rounded(std::uint32_t value, unsigned shift) {
  const std::uint32_t half = 1U << (shift - 1);
  const std::uint32_t rest = value & ((half << 1) - 1);
  const std::uint32_t kept = value >> shift;
  return rest > half || (rest == half && (kept & 1U) != 0) ? kept + 1 : kept;
}

}  // namespace

std::optional<Element> element_named(std::string_view name) {
  const auto* found = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
  if (found == entries.end()) return std::nullopt;
  return found->element;
}

const char* name_of(Element element) {
  return entry_of(element).name;
}

std::size_t size_of(Element element) {
  return entry_of(element).size;
}

double largest(Element element) {
  switch (element) {
    case Element::fp32:
      return static_cast<double>(FLT_MAX);
    case Element::fp16:
      return 65504.0;
    case Element::bf16:
      return 0x1.FEp127;
    case Element::int64:
      return static_cast<double>(std::numeric_limits<std::int64_t>::max());
    case Element::int32:
      return static_cast<double>(std::numeric_limits<std::int32_t>::max());
  }
  return 0.0;
}

std::uint16_t to_fp16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  std::uint32_t half = 0;
  if (magnitude > 0x7F800000U) {  // NaN keeps what fits of its payload, and stays NaN
    half = 0x7C00U | ((magnitude >> 13) & 0x3FFU);
    if (half == 0x7C00U) half = 0x7C01U;
  } else if (magnitude >= 0x47800000U) {  // 65536 and beyond
    half = 0x7C00U;
  } else if (magnitude >= 0x38800000U) {  // normal: 2^-14 and beyond; the exponent's bias changes by 112
    half = shift_rounded(magnitude - (112U << 23), 13);
  } else if (magnitude >= 0x33000000U) {  // subnormal: 2^-25 and beyond
    const unsigned exponent = magnitude >> 23;
    half = shift_rounded((magnitude & 0x7FFFFFU) | 0x800000U, 126U - exponent);
  }
  return static_cast<std::uint16_t>(sign | half);
}

std::uint16_t to_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(((bits >> 16) & 0x8000U) | 0x7FC0U);
  return static_cast<std::uint16_t>(shift_rounded(bits, 16));
}

void convert(const float* source, std::size_t count, Element element, void* target) {
  switch (element) {
    case Element::fp32:
      if (count > 0) std::memcpy(target, source, count * sizeof(float));
      return;
    case Element::fp16:
      std::transform(source, source + count, static_cast<std::uint16_t*>(target), to_fp16);
      return;
    case Element::bf16:
      std::transform(source, source + count, static_cast<std::uint16_t*>(target), to_bf16);
      return;
    case Element::int64:
    case Element::int32:
      break;
  }
  throw Error(Kind::internal, "values are not converted",
              Problem{code::wrong_dtype, name_of(element), "an integer type", "fp32, fp16 or bf16"});
}

}  // namespace adexport::core
