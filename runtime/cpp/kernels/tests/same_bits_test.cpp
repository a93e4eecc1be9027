// A token gets the same bits whatever tokens and adapters are beside it, in its batch or in the banks.
#include <gtest/gtest.h>

#include "numbers.hpp"

namespace adexport::kernels::testing {
namespace {

template <class Which>
class SameBitsTest : public ::testing::Test {
 protected:
  using T = typename Which::Flow;
  using TB = typename Which::Bank;

  // One adapter's matrices, and what it is to be applied to.
  struct Work {
    std::size_t tokens, in, out, rank;
    Guarded<T> y, x;
    Guarded<TB> down, up, down_bias, up_bias;
  };

  Work any_work(std::size_t tokens, std::size_t in, std::size_t out, std::size_t rank) {
    return {tokens,
            in,
            out,
            rank,
            any_values<T>(random_, tokens * out),
            any_values<T>(random_, tokens * in),
            any_values<TB>(random_, in * rank),
            any_values<TB>(random_, rank * out),
            any_values<TB>(random_, rank),
            any_values<TB>(random_, out)};
  }

  // `batch` rows of the tokens from `first` on, in banks of `rank`, of which the adapter has the last row.
  Guarded<T> run(const Work& work, const Table& table, bool bottleneck, std::size_t first, std::size_t batch,
                 std::size_t tokens, std::size_t rank) {
    constexpr std::size_t rows = 2;
    const auto padded = [&](const Guarded<TB>& values, std::size_t each, std::size_t to) {
      const std::size_t count = values.size() / each;
      Guarded<TB> bank(rows * count * to);
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t j = 0; j < each; ++j) bank[(count + i) * to + j] = values[i * each + j];
      }
      return bank;
    };
    const auto down = padded(work.down, work.rank, rank);
    Guarded<TB> up(rows * rank * work.out);
    for (std::size_t i = 0; i < work.up.size(); ++i) up[rank * work.out + i] = work.up[i];
    const auto down_bias = padded(work.down_bias, work.rank, rank);
    const auto up_bias = padded(work.up_bias, work.out, work.out);
    const std::size_t count = batch * tokens;
    Guarded<T> y(count * work.out);
    Guarded<T> x(count * work.in);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = work.y[first * work.out + i];
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = work.x[first * work.in + i];
    const std::vector<std::int64_t> ids{1};
    const std::vector<Activation> activations{Activation::gelu};
    LowRankCall call{};
    call.where = "test";
    call.pair = Which::pair;
    call.y = view(y, {batch, tokens, work.out});
    call.x = view(x, {batch, tokens, work.in});
    call.down = view(down, {rows, work.in, rank});
    call.up = view(up, {rows, rank, work.out});
    if (bottleneck) {
      call.down_bias = view(down_bias, {rows, rank});
      call.up_bias = view(up_bias, {rows, work.out});
      call.activations = &activations;
    }
    call.ids = view(ids, {1});
    call.run(call.checked(), y.data(), table, Backwards());
    return y;
  }

  std::mt19937 random_{11};
};

TYPED_TEST_SUITE(SameBitsTest, AllTypes);

TYPED_TEST(SameBitsTest, WhateverTokensAreBeside) {
  for (const std::size_t rank : {1U, 4U, 8U, 9U, 16U, 17U, 30U, 32U, 40U, 48U, 64U, 75U}) {
    for (const std::size_t in : {1U, 3U, 6U, 257U, 518U}) {
      const auto work = this->any_work(40, in, 83, rank);
      for (const Table* table : runnable_tables()) {
        const auto all = this->run(work, *table, rank % 2 == 0, 0, 1, 40, rank);
        for (const std::size_t tokens : {1U, 2U, 3U, 5U, 7U, 13U}) {
          for (std::size_t first = 0; first + tokens <= 40; first += tokens) {
            const auto some = this->run(work, *table, rank % 2 == 0, first, 1, tokens, rank);
            ASSERT_EQ(std::memcmp(some.data(), all.data() + first * work.out, some.size() * sizeof(some[0])), 0)
                << table->name << " rank " << rank << " in " << in << ": " << tokens << " tokens from " << first;
          }
        }
        const auto joined = this->run(work, *table, rank % 2 == 0, 0, 8, 5, rank);
        ASSERT_EQ(std::memcmp(joined.data(), all.data(), all.size() * sizeof(all[0])), 0) << table->name;
      }
    }
  }
}

TYPED_TEST(SameBitsTest, WhateverRankTheBankHas) {
  for (const std::size_t rank : {1U, 7U, 16U, 20U, 48U}) {
    const auto work = this->any_work(17, 300, 70, rank);
    for (const Table* table : runnable_tables()) {
      const auto own = this->run(work, *table, true, 0, 1, 17, rank);
      for (const std::size_t more : {1U, 3U, 8U, 16U, 44U}) {
        const auto padded = this->run(work, *table, true, 0, 1, 17, rank + more);
        ASSERT_EQ(std::memcmp(padded.data(), own.data(), own.size() * sizeof(own[0])), 0)
            << table->name << " rank " << rank << " in a bank of " << rank + more;
      }
    }
  }
}

}  // namespace
}  // namespace adexport::kernels::testing
