// Vectors of 16 floats, or of 8 for short ranks.
#pragma once

#include <immintrin.h>

#include "../types.hpp"

namespace adexport::kernels::avx512 {

#define ADEXPORT_INLINE static inline __attribute__((always_inline))

// Two products in one lane pair: a load of two scalars serves twice as many of them as a load of one. CPUs multiply
// faster than they load.
struct Pair {
  using Register = __m512;

  ADEXPORT_INLINE Register zero() { return _mm512_setzero_ps(); }
  ADEXPORT_INLINE Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  ADEXPORT_INLINE Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  ADEXPORT_INLINE Register both(const float* from) {
    double two = 0;
    __builtin_memcpy(&two, from, sizeof(two));
    return _mm512_castpd_ps(_mm512_set1_pd(two));
  }
  ADEXPORT_INLINE Register first(const float* from) {
    return _mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_castps_pd(_mm_load_ss(from))));
  }
};

struct Narrow {
  using Register = __m256;
  static constexpr std::size_t width = 8;

  // what a and b have side by side, lane by lane, and the sum of such neighbours
  struct Zipped : Pair {
    static constexpr std::size_t parts = 1;
    ADEXPORT_INLINE void zip(__m256 a, __m256 b, Register* zipped) {
      const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
      zipped[0] = _mm512_permutexvar_ps(order, _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1));
    }
    ADEXPORT_INLINE __m256 unzip(const Register* zipped) {
      const __m256 low = _mm512_castps512_ps256(zipped[0]);
      const __m256 high = _mm512_extractf32x8_ps(zipped[0], 1);
      const __m256 sum = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd));
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(sum), 0xd8));
    }
  };

  ADEXPORT_INLINE __mmask8 mask(std::size_t count) { return static_cast<__mmask8>((1U << count) - 1U); }
  ADEXPORT_INLINE Register zero() { return _mm256_setzero_ps(); }
  ADEXPORT_INLINE Register set(float value) { return _mm256_set1_ps(value); }
  ADEXPORT_INLINE Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  ADEXPORT_INLINE Register fma(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }

  ADEXPORT_INLINE Register load(const float* from) { return _mm256_loadu_ps(from); }
  ADEXPORT_INLINE Register load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  ADEXPORT_INLINE Register load(const BFloat* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  ADEXPORT_INLINE Register load(const float* from, std::size_t count) {
    return _mm256_maskz_loadu_ps(mask(count), from);
  }
  ADEXPORT_INLINE Register load(const Half* from, std::size_t count) {
    return _mm256_cvtph_ps(_mm_maskz_loadu_epi16(mask(count), from));
  }
  ADEXPORT_INLINE Register load(const BFloat* from, std::size_t count) {
    return widen(_mm_maskz_loadu_epi16(mask(count), from));
  }
  ADEXPORT_INLINE void store(float* to, Register value) { _mm256_storeu_ps(to, value); }
  ADEXPORT_INLINE void store(float* to, Register value, std::size_t count) {
    _mm256_mask_storeu_ps(to, mask(count), value);
  }

 private:
  ADEXPORT_INLINE Register widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
};

struct Vector {
  using Register = __m512;
  using Narrower = Narrow;

  struct Zipped : Pair {
    static constexpr std::size_t parts = 2;
    ADEXPORT_INLINE void zip(__m512 a, __m512 b, Register* zipped) {
      zipped[0] = _mm512_unpacklo_ps(a, b);
      zipped[1] = _mm512_unpackhi_ps(a, b);
    }
    ADEXPORT_INLINE __m512 unzip(const Register* zipped) {
      return _mm512_add_ps(_mm512_shuffle_ps(zipped[0], zipped[1], 0x88),
                           _mm512_shuffle_ps(zipped[0], zipped[1], 0xdd));
    }
  };
  static constexpr std::size_t width = 16;
  static constexpr std::size_t registers = 32;

  ADEXPORT_INLINE __mmask16 mask(std::size_t count) { return static_cast<__mmask16>((1U << count) - 1U); }
  ADEXPORT_INLINE Register zero() { return _mm512_setzero_ps(); }
  ADEXPORT_INLINE Register set(float value) { return _mm512_set1_ps(value); }
  ADEXPORT_INLINE Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  ADEXPORT_INLINE Register sub(Register a, Register b) { return _mm512_sub_ps(a, b); }
  ADEXPORT_INLINE Register mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  ADEXPORT_INLINE Register div(Register a, Register b) { return _mm512_div_ps(a, b); }
  ADEXPORT_INLINE Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  // b where a is not a number: so does the instruction
  ADEXPORT_INLINE Register max(Register a, Register b) { return _mm512_max_ps(a, b); }
  ADEXPORT_INLINE Register abs(Register a) { return _mm512_abs_ps(a); }
  // a where the sign bit of x is set, else b
  ADEXPORT_INLINE Register by_sign(Register x, Register a, Register b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  // two to the power of n, for a value that is 1.5 * 2^23 + n
  ADEXPORT_INLINE Register power(Register shifted) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)));
  }

  ADEXPORT_INLINE Register load(const float* from) { return _mm512_loadu_ps(from); }
  ADEXPORT_INLINE Register load(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  ADEXPORT_INLINE Register load(const BFloat* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  ADEXPORT_INLINE Register load(const float* from, std::size_t count) {
    return _mm512_maskz_loadu_ps(mask(count), from);
  }
  ADEXPORT_INLINE Register load(const Half* from, std::size_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(count), from));
  }
  ADEXPORT_INLINE Register load(const BFloat* from, std::size_t count) {
    return widen(_mm256_maskz_loadu_epi16(mask(count), from));
  }

  ADEXPORT_INLINE void store(float* to, Register value) { _mm512_storeu_ps(to, value); }
  ADEXPORT_INLINE void store(Half* to, Register value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow_half(value));
  }
  ADEXPORT_INLINE void store(BFloat* to, Register value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow_bfloat(value));
  }
  ADEXPORT_INLINE void store(float* to, Register value, std::size_t count) {
    _mm512_mask_storeu_ps(to, mask(count), value);
  }
  ADEXPORT_INLINE void store(Half* to, Register value, std::size_t count) {
    _mm256_mask_storeu_epi16(to, mask(count), narrow_half(value));
  }
  ADEXPORT_INLINE void store(BFloat* to, Register value, std::size_t count) {
    _mm256_mask_storeu_epi16(to, mask(count), narrow_bfloat(value));
  }

 private:
  ADEXPORT_INLINE Register widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  ADEXPORT_INLINE __m256i narrow_half(Register value) {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // to the nearest, ties to even; what is not a number stays so
  ADEXPORT_INLINE __m256i narrow_bfloat(Register value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const __mmask16 none = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, none, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
};

#undef ADEXPORT_INLINE

}  // namespace adexport::kernels::avx512
