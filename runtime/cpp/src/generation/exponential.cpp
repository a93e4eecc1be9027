#include "generation/exponential.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace adexport::core {

namespace {

float power_of_two(std::int32_t exponent) {
  const std::int32_t bits = (exponent + 127) << 23;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// x = n log 2 + r with |r| up to log 2 / 2, and e**r as a quotient of polynomials (minimax, of degrees 5 and 2).
inline __attribute__((always_inline)) float exponential(float x) {
  constexpr float kInverseLog2 = 1.44269504F, kLog2High = -6.93145752e-1F, kLog2Low = -1.42860677e-6F;
  constexpr float kLeast = -103.97208404541015625F;  // below it lies half of the least number above 0
  const float bounded = x < kLeast ? kLeast : x;
  const float n = std::rint(bounded * kInverseLog2);
  const float r = std::fma(n, kLog2Low, std::fma(n, kLog2High, bounded));
  float over = std::fma(5.082762527590693718096e-04F, r, 6.757896990527504603057e-03F);
  over = std::fma(over, r, 5.114512081637298353406e-02F);
  over = std::fma(over, r, 2.473615434895520810817e-01F);
  over = std::fma(over, r, 7.257664613233124478488e-01F);
  over = std::fma(over, r, 9.999999999980870924916e-01F);
  float under = std::fma(2.159509375685829852307e-02F, r, -2.742335390411667452936e-01F);
  under = std::fma(under, r, 1.0F);
  // by two powers, as one may be too small for a float; only the last product rounds
  const auto exponent = static_cast<std::int32_t>(n);
  const std::int32_t half = exponent / 2;
  const float value = over / under * power_of_two(half) * power_of_two(exponent - half);
  return x < kLeast ? 0.0F : value;
}

void exponentiate_portably(float* values, std::size_t count) {
  for (std::size_t at = 0; at < count; ++at) values[at] = exponential(values[at]);
}

#if defined(__x86_64__)
// The same, eight at once: without it every fma is a call.
__attribute__((target("avx2,fma"))) void exponentiate_by_vectors(float* values, std::size_t count) {
  for (std::size_t at = 0; at < count; ++at) values[at] = exponential(values[at]);
}
#endif

}  // namespace

void exponentiate(float* values, std::size_t count) {
#if defined(__x86_64__)
  static const bool vectors = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (vectors) return exponentiate_by_vectors(values, count);
#endif
  exponentiate_portably(values, count);
}

}  // namespace adexport::core
