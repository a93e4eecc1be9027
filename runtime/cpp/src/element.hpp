// Element types of tensors, and conversions among them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace adexport::core {

enum class Element { fp32, fp16, bf16, int64, int32 };

// As the manifest names them.
std::optional<Element> element_named(std::string_view name);
const char* name_of(Element element);
std::size_t size_of(Element element);
// The largest finite value of a float type.
double largest(Element element);

// To the nearest, ties to even, as numpy and ml_dtypes round.
std::uint16_t to_fp16(float value);
std::uint16_t to_bf16(float value);

// Copy `count` float32 values into elements of a float type.
void convert(const float* source, std::size_t count, Element element, void* target);

}  // namespace adexport::core
