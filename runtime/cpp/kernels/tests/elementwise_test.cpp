// Vectors of a row of every set of instructions and pair of types.
#include <gtest/gtest.h>

#include "numbers.hpp"

namespace adexport::kernels::testing {
namespace {

template <class Which>
class ElementwiseTest : public ::testing::Test {};

TYPED_TEST_SUITE(ElementwiseTest, AllTypes);

TYPED_TEST(ElementwiseTest, EveryCountOfFeatures) {
  using T = typename TypeParam::Flow;
  using TB = typename TypeParam::Bank;
  std::mt19937 random(3);
  for (std::size_t features = 0; features <= 70; ++features) {
    const std::size_t batch = 3, tokens = 1 + features % 7, rows = 4;
    const bool scales = features % 2 == 0, in_place = features % 3 == 0;
    const auto x = any_values<T>(random, batch * tokens * features);
    const auto vector = any_values<TB>(random, rows * features);
    const std::vector<std::int64_t> ids{3, 0, 1};
    for (const Table* table : runnable_tables()) {
      Guarded<T> result = in_place ? x : Guarded<T>(x.size());
      ElementwiseCall call{};
      call.where = "test";
      call.pair = TypeParam::pair;
      call.x = in_place ? view(result, {batch, tokens, features}) : view(x, {batch, tokens, features});
      call.vector = view(vector, {rows, features});
      call.ids = view(ids, {3});
      call.scales = scales;
      call.run(call.checked(), result.data(), *table, Backwards());
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto row = static_cast<std::size_t>(ids[i / (tokens * features)]);
        const double factor = value_of(vector[row * features + i % features]);
        const double from = value_of(x[i]);
        const double expected = row == 0 ? from : scales ? from * factor : from + factor;
        ASSERT_NEAR(value_of(result[i]), expected, std::abs(expected) * step<T>() * 1.01 + 1e-7)
            << table->name << " " << features;
      }
    }
  }
}

// Exact results show how the tables round.
template <class T>
std::vector<T> rounded(const Table& table, Pair pair, const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> result(a.size());
  table[pair].add({a.data(), result.data(), b.data(), 1, a.size()});
  return result;
}

TEST(Elementwise, AllTablesRoundAlike) {
  std::mt19937 random(5);
  std::vector<Half> a(4096), b(4096);
  std::vector<BFloat> c(4096), d(4096);
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i].bits = static_cast<std::uint16_t>(random());  // infinities and what is not a number among them
    b[i].bits = static_cast<std::uint16_t>(random());
    c[i].bits = static_cast<std::uint16_t>(random());
    d[i].bits = static_cast<std::uint16_t>(random());
  }
  const auto first = rounded(portable_table(), Pair::half_half, a, b);
  const auto second = rounded(portable_table(), Pair::bfloat_bfloat, c, d);
  for (const Table* table : runnable_tables()) {
    const auto halves = rounded(*table, Pair::half_half, a, b);
    const auto bfloats = rounded(*table, Pair::bfloat_bfloat, c, d);
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double half = value_of(halves[i]);
      if (std::isnan(value_of(first[i]))) {
        ASSERT_TRUE(std::isnan(half)) << table->name;
      } else {
        ASSERT_EQ(first[i].bits, halves[i].bits) << table->name << " " << value_of(a[i]) << " " << value_of(b[i]);
      }
      if (std::isnan(value_of(second[i]))) {
        ASSERT_TRUE(std::isnan(value_of(bfloats[i]))) << table->name;
      } else {
        ASSERT_EQ(second[i].bits, bfloats[i].bits) << table->name;
      }
    }
  }
}

}  // namespace
}  // namespace adexport::kernels::testing
