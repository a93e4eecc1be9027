// The element types of operators and banks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adexport::kernels {

// IEEE binary16, as its bits.
struct Half {
  std::uint16_t bits;
};

// The upper half of a binary32, as its bits.
struct BFloat {
  std::uint16_t bits;
};

// The element types of what flows through the model, and of the banks of adapters.
enum class Pair : unsigned char { float_float, half_half, bfloat_bfloat, float_half, float_bfloat };
constexpr std::size_t pair_count = 5;

// The pair whose banks have the type of what flows through the model.
constexpr Pair same_types(Pair pair) {
  return pair == Pair::float_half || pair == Pair::float_bfloat ? Pair::float_float : pair;
}

enum class Activation : unsigned char { linear, relu, gelu, gelu_new, silu, tanh };

}  // namespace adexport::kernels
