// LoRA on a GPU against sums in double precision; skipped where there is none.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "lora_call.hpp"
#include "numbers.hpp"

namespace adexport::kernels::testing {
namespace {

// A copy of values on the device.
class OnDevice {
 public:
  template <class Values>
  explicit OnDevice(const Values& values) : bytes_(values.size() * sizeof(values[0])) {
    if (cudaMalloc(&memory_, bytes_ + 1) != cudaSuccess) throw std::bad_alloc();
    EXPECT_EQ(cudaMemcpy(memory_, values.data(), bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(memory_); }

  void* data() const { return memory_; }
  void read(void* to) const { EXPECT_EQ(cudaMemcpy(to, memory_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess); }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
};

template <class Which>
class CudaLoraTest : public ::testing::Test {
 protected:
  using T = typename Which::Flow;

  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU";
  }

  void check(std::size_t batch, std::size_t tokens, std::size_t in, std::size_t out, std::size_t rank,
             std::vector<std::int64_t> ids, bool biased, bool in_place, bool used = true) {
    constexpr std::size_t rows = 4;
    const auto y = any_values<T>(random_, batch * tokens * out);
    const auto x = any_values<T>(random_, batch * tokens * in);
    const auto a = any_values<T>(random_, rows * in * rank);
    const auto b = any_values<T>(random_, rows * rank * out);
    const auto bias = any_values<T>(random_, out);
    const OnDevice device_y(y), device_x(x), device_a(a), device_b(b), device_bias(bias), other(y);
    LowRankCall call{};
    call.where = "LoraAdd";
    call.pair = Which::pair;
    call.y = view(device_y, y.size(), {batch, tokens, out});
    call.x = view(device_x, x.size(), {batch, tokens, in});
    call.down = view(device_a, a.size(), {rows, in, rank});
    call.up = view(device_b, b.size(), {rows, rank, out});
    if (biased) call.bias = view(device_bias, bias.size(), {out});
    call.ids = testing::view(ids, {ids.size()});
    call.used = used;
    const OnDevice& result = in_place ? device_y : other;
    cuda::run(call, call.checked(), result.data(), nullptr);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<T> got(y.size());
    result.read(got.data());
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::size_t token = i / out, n = i % out;
      const auto row = static_cast<std::size_t>(ids[ids.size() == 1 ? 0 : token / tokens]);
      double expected = value_of(y[i]) + (biased ? value_of(bias[n]) : 0);
      double size = std::abs(expected) + 1;
      for (std::size_t r = 0; r < rank && row > 0 && used; ++r) {
        double hidden = 0;
        for (std::size_t k = 0; k < in; ++k) {
          hidden += value_of(x[token * in + k]) * value_of(a[(row * in + k) * rank + r]);
        }
        expected += hidden * value_of(b[(row * rank + r) * out + n]);
        size += std::abs(hidden) + static_cast<double>(in);
      }
      ASSERT_NEAR(value_of(got[i]), expected, size * 1e-6 + std::abs(expected) * step<T>() * 1.01) << i;
    }
  }

  std::mt19937 random_{11};

 private:
  static View view(const OnDevice& values, std::size_t, std::initializer_list<std::size_t> shape) {
    View made = testing::view(std::vector<char>(), shape);
    made.data = values.data();
    return made;
  }
};

using BothTypes = ::testing::Types<Types<float, float, Pair::float_float>, Types<Half, Half, Pair::half_half>>;
TYPED_TEST_SUITE(CudaLoraTest, BothTypes);

TYPED_TEST(CudaLoraTest, ManySizes) {
  for (const std::size_t rank : {0U, 1U, 3U, 8U, 16U, 17U, 64U, 300U, 1000U}) {
    this->check(3, 21, 50, 301, rank, {2, 0, 3}, rank % 2 == 0, rank % 3 != 0);
  }
  this->check(8, 1, 576, 1536, 16, {1, 2, 3, 0, 1, 2, 3, 0}, false, true);
  this->check(600, 2, 7, 9, 2, std::vector<std::int64_t>(600, 3), true, false);
  this->check(2, 5, 8, 16, 4, {1}, true, true, false);
  this->check(0, 5, 8, 16, 4, {1}, true, true);
  this->check(2, 0, 8, 16, 4, {1}, true, true);
  this->check(2, 3, 0, 16, 4, {1}, true, true);
}

TYPED_TEST(CudaLoraTest, TooGreatARankIsRefused) {
  EXPECT_THROW(this->check(1, 1, 1, 1, 20'000, {1}, false, true), std::runtime_error);
}

}  // namespace
}  // namespace adexport::kernels::testing
