// Vectors of 4 floats, for any CPU that the compiler knows.
#pragma once

#include "../types.hpp"

namespace adexport::kernels::portable {

#define ADEXPORT_INLINE static inline __attribute__((always_inline))

struct Vector {
  using Register = float __attribute__((vector_size(16)));
  using Bits = std::uint32_t __attribute__((vector_size(16)));
  using Narrower = Vector;
  using Zipped = void;  // loads are as fast as products
  static constexpr std::size_t width = 4;
  static constexpr std::size_t registers = 16;

  ADEXPORT_INLINE Register zero() { return Register{0, 0, 0, 0}; }
  ADEXPORT_INLINE Register set(float value) { return Register{value, value, value, value}; }
  ADEXPORT_INLINE Register add(Register a, Register b) { return a + b; }
  ADEXPORT_INLINE Register sub(Register a, Register b) { return a - b; }
  ADEXPORT_INLINE Register mul(Register a, Register b) { return a * b; }
  ADEXPORT_INLINE Register div(Register a, Register b) { return a / b; }
  ADEXPORT_INLINE Register fma(Register a, Register b, Register c) { return a * b + c; }
  // b where a is not a number
  ADEXPORT_INLINE Register max(Register a, Register b) { return a > b ? a : b; }
  ADEXPORT_INLINE Register abs(Register a) { return (Register)((Bits)a & 0x7fffffffU); }
  // a where the sign bit of x is set, else b
  ADEXPORT_INLINE Register by_sign(Register x, Register a, Register b) {
    return ((Bits)x & 0x80000000U) != 0U ? a : b;
  }
  // two to the power of n, for a value that is 1.5 * 2^23 + n
  ADEXPORT_INLINE Register power(Register shifted) { return (Register)(((Bits)shifted << 23) + 0x3f800000U); }

  template <class T>
  ADEXPORT_INLINE Register load(const T* from) {
    return Register{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])};
  }
  ADEXPORT_INLINE Register load(const float* from) {
    Register value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
  }
  template <class T>
  ADEXPORT_INLINE Register load(const T* from, std::size_t count) {
    Register value = zero();
    for (std::size_t i = 0; i < count; ++i) value[i] = widen(from[i]);
    return value;
  }

  template <class T>
  ADEXPORT_INLINE void store(T* to, Register value) {
    for (std::size_t i = 0; i < width; ++i) narrow(to + i, value[i]);
  }
  ADEXPORT_INLINE void store(float* to, Register value) { __builtin_memcpy(to, &value, sizeof(value)); }
  template <class T>
  ADEXPORT_INLINE void store(T* to, Register value, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) narrow(to + i, value[i]);
  }

 private:
  ADEXPORT_INLINE std::uint32_t bits_of(float value) {
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
  }
  ADEXPORT_INLINE float float_of(std::uint32_t bits) {
    float value = 0;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
  }
  ADEXPORT_INLINE float widen(float value) { return value; }
  ADEXPORT_INLINE float widen(BFloat value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }
  // exponents of a half are moved to a float's by a product, which is exact, subnormals too
  ADEXPORT_INLINE float widen(Half value) {
    const std::uint32_t sign = (value.bits & 0x8000U) << 16;
    const std::uint32_t rest = (value.bits & 0x7fffU) << 13;
    if (rest >= 0x7c00U << 13) return float_of(sign | 0x7f800000U | (rest & 0x7fffffU));
    return float_of(sign | bits_of(float_of(rest) * 0x1p112F));
  }
  ADEXPORT_INLINE void narrow(float* to, float value) { *to = value; }
  // to the nearest, ties to even; what is not a number stays so
  ADEXPORT_INLINE void narrow(BFloat* to, float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = value == value ? bits + 0x7fffU + ((bits >> 16) & 1U) : bits | 0x400000U;
    to->bits = static_cast<std::uint16_t>(rounded >> 16);
  }
  ADEXPORT_INLINE void narrow(Half* to, float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000U;
    const std::uint32_t size = bits & 0x7fffffffU;
    std::uint32_t rest = 0;
    if (size > 0x7f800000U) {
      rest = 0x7e00U | ((size >> 13) & 0x3ffU);
    } else if (size >= 0x477ff000U) {  // rounds to more than the greatest half
      rest = 0x7c00U;
    } else if (size < 0x38800000U) {  // a subnormal half: the sum rounds to its last bit
      rest = bits_of(float_of(size) + 0.5F) - 0x3f000000U;
    } else {
      rest = (size - 0x38000000U + 0xfffU + ((size >> 13) & 1U)) >> 13;
    }
    to->bits = static_cast<std::uint16_t>(sign | rest);
  }
};

#undef ADEXPORT_INLINE

}  // namespace adexport::kernels::portable
