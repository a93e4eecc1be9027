// Vectors of 8 floats.
#pragma once

#include <immintrin.h>

#include "../types.hpp"

namespace adexport::kernels::avx2 {

#define ADEXPORT_INLINE static inline __attribute__((always_inline))

struct Vector {
  using Register = __m256;
  using Narrower = Vector;
  using Zipped = void;  // loads are as fast as products
  static constexpr std::size_t width = 8;
  static constexpr std::size_t registers = 16;

  ADEXPORT_INLINE Register zero() { return _mm256_setzero_ps(); }
  ADEXPORT_INLINE Register set(float value) { return _mm256_set1_ps(value); }
  ADEXPORT_INLINE Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  ADEXPORT_INLINE Register sub(Register a, Register b) { return _mm256_sub_ps(a, b); }
  ADEXPORT_INLINE Register mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
  ADEXPORT_INLINE Register div(Register a, Register b) { return _mm256_div_ps(a, b); }
  ADEXPORT_INLINE Register fma(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  // b where a is not a number: so does the instruction
  ADEXPORT_INLINE Register max(Register a, Register b) { return _mm256_max_ps(a, b); }
  ADEXPORT_INLINE Register abs(Register a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
  // a where the sign bit of x is set, else b
  ADEXPORT_INLINE Register by_sign(Register x, Register a, Register b) { return _mm256_blendv_ps(b, a, x); }
  // two to the power of n, for a value that is 1.5 * 2^23 + n
  ADEXPORT_INLINE Register power(Register shifted) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000)));
  }

  ADEXPORT_INLINE Register load(const float* from) { return _mm256_loadu_ps(from); }
  ADEXPORT_INLINE Register load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  ADEXPORT_INLINE Register load(const BFloat* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  ADEXPORT_INLINE Register load(const float* from, std::size_t count) {
    return _mm256_maskload_ps(from, mask(count));
  }
  ADEXPORT_INLINE Register load(const Half* from, std::size_t count) { return _mm256_cvtph_ps(some(from, count)); }
  ADEXPORT_INLINE Register load(const BFloat* from, std::size_t count) { return widen(some(from, count)); }

  ADEXPORT_INLINE void store(float* to, Register value) { _mm256_storeu_ps(to, value); }
  ADEXPORT_INLINE void store(Half* to, Register value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow_half(value));
  }
  ADEXPORT_INLINE void store(BFloat* to, Register value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow_bfloat(value));
  }
  ADEXPORT_INLINE void store(float* to, Register value, std::size_t count) {
    _mm256_maskstore_ps(to, mask(count), value);
  }
  ADEXPORT_INLINE void store(Half* to, Register value, std::size_t count) { some(to, narrow_half(value), count); }
  ADEXPORT_INLINE void store(BFloat* to, Register value, std::size_t count) {
    some(to, narrow_bfloat(value), count);
  }

 private:
  ADEXPORT_INLINE __m256i mask(std::size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  template <class T>
  ADEXPORT_INLINE __m128i some(const T* from, std::size_t count) {
    alignas(16) T values[width] = {};
    __builtin_memcpy(values, from, count * sizeof(T));
    return _mm_load_si128(reinterpret_cast<const __m128i*>(values));
  }
  template <class T>
  ADEXPORT_INLINE void some(T* to, __m128i value, std::size_t count) {
    alignas(16) T values[width];
    _mm_store_si128(reinterpret_cast<__m128i*>(values), value);
    __builtin_memcpy(to, values, count * sizeof(T));
  }
  ADEXPORT_INLINE Register widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  ADEXPORT_INLINE __m128i narrow_half(Register value) {
    return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // to the nearest, ties to even; what is not a number stays so
  ADEXPORT_INLINE __m128i narrow_bfloat(Register value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const Register none = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    const Register chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), none);
    const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

#undef ADEXPORT_INLINE

}  // namespace adexport::kernels::avx2
