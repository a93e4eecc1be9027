// What is copied to a device for a run, and caches that rows move in.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "ort/gathered.hpp"
#include "ort/host_caches.hpp"

namespace adexport::testing {
namespace {

core::BankArray floats(std::vector<std::int64_t> shape) {
  std::size_t count = 1;
  for (const auto size : shape) count *= static_cast<std::size_t>(size);
  const auto values = std::make_shared<std::vector<float>>(count + 1);
  std::iota(values->begin(), values->end(), 0.0F);
  return {core::Element::fp32, std::move(shape), {values, values->data()}, count * sizeof(float)};
}

std::vector<float> content(const core::BankArray& array) {
  std::vector<float> values(array.bytes / sizeof(float));
  std::memcpy(values.data(), array.data.get(), array.bytes);
  return values;
}

TEST(Gathered, HoldsTheRowsOfARunOnceEach) {
  core::BankArrays bank;
  bank.arrays = {floats({4, 2}), floats({4, 0, 3})};
  const std::vector<std::int64_t> ids{3, 0, 3, 1};
  const auto gathered = core::gather(bank, ids.data(), ids.size(), false);
  EXPECT_EQ(gathered.ids, (std::vector<std::int64_t>{2, 0, 2, 1}));
  ASSERT_EQ(gathered.arrays.size(), 2U);
  EXPECT_EQ(gathered.arrays[0].shape, (std::vector<std::int64_t>{3, 2}));
  EXPECT_EQ(content(gathered.arrays[0]), (std::vector<float>{0, 1, 2, 3, 6, 7}));
  EXPECT_EQ(gathered.arrays[1].shape, (std::vector<std::int64_t>{3, 0, 3}));
}

TEST(Gathered, PadsWhatIsEmptyForEngines) {
  core::BankArrays bank;
  bank.arrays = {floats({2, 0, 3})};
  const std::int64_t id = 1;
  const auto gathered = core::gather(bank, &id, 1, true);
  EXPECT_EQ(gathered.arrays[0].shape, (std::vector<std::int64_t>{1, 1, 3}));
  EXPECT_EQ(content(gathered.arrays[0]), (std::vector<float>{0, 0, 0}));
}

TEST(HostCaches, MoveAndClearRows) {
  core::Cache layer;
  layer.kv_heads = 2;
  layer.size = 2;
  core::HostCaches caches({layer}, core::Element::fp32, 3, 4);
  ASSERT_EQ(caches.arrays().size(), 2U);
  for (const auto& array : caches.arrays()) {
    auto* values = static_cast<float*>(array.data.get());
    std::iota(values, values + 3 * 2 * 4 * 2, 1.0F);
  }
  caches.move(2, 0, 3);
  for (const auto& array : caches.arrays()) {
    const auto values = content(array);
    for (std::size_t head = 0; head < 2; ++head) {
      for (std::size_t at = 0; at < 8; ++at) {
        const auto moved = static_cast<float>(1 + 2 * 16 + head * 8 + at);
        const auto kept = static_cast<float>(1 + head * 8 + at);
        EXPECT_EQ(values[head * 8 + at], at < 3 * 2 ? moved : kept);
      }
    }
  }
  caches.clear(1);
  for (const auto& array : caches.arrays()) {
    const auto values = content(array);
    EXPECT_EQ(std::accumulate(values.begin() + 16, values.begin() + 32, 0.0F), 0.0F);
    EXPECT_EQ(values[32], 33.0F);
  }
}

TEST(HostCaches, WithoutMemoryThrow) {
  core::Cache layer;
  layer.kv_heads = std::int64_t{1} << 40;
  layer.size = std::int64_t{1} << 40;
  EXPECT_THROW(core::HostCaches({layer}, core::Element::fp16, 3, 4), std::bad_alloc);
}

}  // namespace
}  // namespace adexport::testing
