// Numbers in the element types of the kernels, converted one by one.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "call.hpp"
#include "isa.hpp"

namespace adexport::kernels::testing {

inline double value_of(float value) {
  return static_cast<double>(value);
}

inline double value_of(BFloat value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float made = 0;
  std::memcpy(&made, &bits, sizeof(made));
  return static_cast<double>(made);
}

inline double value_of(Half value) {
  const int exponent = (value.bits >> 10) & 31;
  const double fraction = (value.bits & 1023) / 1024.0;
  const double sign = (value.bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, -14);
  return sign * std::ldexp(1 + fraction, exponent - 15);
}

// What every element type can nearly say: between -1 and 1, and never 0.
inline void any_value(std::mt19937& random, float& to) {
  to = std::uniform_real_distribution<float>(-1.0F, 1.0F)(random);
}

inline void any_value(std::mt19937& random, BFloat& to) {
  float value = 0;
  any_value(random, value);
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  to.bits = static_cast<std::uint16_t>(bits >> 16);
}

inline void any_value(std::mt19937& random, Half& to) {
  const auto bits = static_cast<std::uint32_t>(random());
  const std::uint32_t size = (bits >> 16) % 18U;
  const std::uint32_t exponent = size > 14U ? 0U : 14U - size;  // subnormals among them
  to.bits = static_cast<std::uint16_t>((bits & 0x83ffU) | exponent << 10);
}

// Values that end where a page begins that nobody may touch: sanitizers do not see what vectors read.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t count) : count_(count) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = (count * sizeof(T) + page - 1) / page * page;
    void* start = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + bytes, page, PROT_NONE) != 0) std::abort();
    memory_ = {start, [all = bytes + page](void* memory) { munmap(memory, all); }};
    values_ = reinterpret_cast<T*>(static_cast<char*>(start) + bytes) - count;
  }
  Guarded(const Guarded& other) : Guarded(other.count_) {
    for (std::size_t i = 0; i < count_; ++i) values_[i] = other.values_[i];
  }
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return values_; }
  const T* data() const { return values_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t index) { return values_[index]; }
  const T& operator[](std::size_t index) const { return values_[index]; }
  T* begin() { return values_; }
  T* end() { return values_ + count_; }

 private:
  std::size_t count_;
  std::shared_ptr<void> memory_;
  T* values_;
};

// Half a step of the type, relative to the value.
template <class T>
constexpr double step() {
  return 0x1p-24;
}
template <>
constexpr double step<Half>() {
  return 0x1p-11;
}
template <>
constexpr double step<BFloat>() {
  return 0x1p-8;
}

template <class T>
Guarded<T> any_values(std::mt19937& random, std::size_t count) {
  Guarded<T> made(count);
  for (T& value : made) any_value(random, value);
  return made;
}

template <class Values>
View view(const Values& values, std::initializer_list<std::size_t> shape) {
  View made;
  made.data = values.data();
  made.there = true;
  for (const std::size_t size : shape) made.shape[made.axes++] = static_cast<std::int64_t>(size);
  return made;
}

// Runs tasks one after the other, the last first.
class Backwards final : public Pool {
 public:
  void run(std::size_t total, std::size_t, Task task, void* data) const override {
    for (std::size_t i = total; i > 0; --i) task(data, i - 1);
  }
};

template <class T, class TB, Pair which>
struct Types {
  using Flow = T;
  using Bank = TB;
  static constexpr Pair pair = which;
};

// What the kernels are made for.
using AllTypes = ::testing::Types<Types<float, float, Pair::float_float>, Types<Half, Half, Pair::half_half>,
                                  Types<BFloat, BFloat, Pair::bfloat_bfloat>, Types<float, Half, Pair::float_half>,
                                  Types<float, BFloat, Pair::float_bfloat>>;

inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_new:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
    case Activation::linear:
      break;
  }
  return x;
}

}  // namespace adexport::kernels::testing
