// LoRA and bottlenecks of every set of instructions and pair of types against sums in double precision.
#include <gtest/gtest.h>

#include "numbers.hpp"
#include "pieces.hpp"

namespace adexport::kernels::testing {
namespace {

struct Sizes {
  std::size_t batch, tokens, in, out, rank, rows;
};

template <class Which>
class LowRankTest : public ::testing::Test {
 protected:
  using T = typename Which::Flow;
  using TB = typename Which::Bank;

  // One call with everything that `bottleneck` and `biased` ask for, on each table.
  void check(const Sizes& sizes, std::vector<std::int64_t> ids, bool bottleneck, bool biased, bool in_place,
             bool used = true) {
    const auto [batch, tokens, in, out, rank, rows] = sizes;
    const auto y = any_values<T>(random_, batch * tokens * out);
    const auto x = any_values<T>(random_, batch * tokens * in);
    const auto bias = any_values<T>(random_, out);
    const auto down = any_values<TB>(random_, rows * in * rank);
    const auto up = any_values<TB>(random_, rows * rank * out);
    const auto down_bias = any_values<TB>(random_, rows * rank);
    const auto up_bias = any_values<TB>(random_, rows * out);
    std::vector<std::int64_t> code(rows);
    for (auto& each : code) each = static_cast<std::int64_t>(random_() % 40) - 20;
    const std::vector<Activation> activations{Activation::relu, Activation::gelu,   Activation::gelu_new,
                                              Activation::silu, Activation::linear, Activation::tanh};
    LowRankCall call{};
    call.where = "test";
    call.pair = Which::pair;
    call.y = view(y, {batch, tokens, out});
    call.x = view(x, {batch, tokens, in});
    call.down = view(down, {rows, in, rank});
    call.up = view(up, {rows, rank, out});
    call.used = used;
    if (biased) call.bias = view(bias, {out});
    if (bottleneck) {
      call.down_bias = view(down_bias, {rows, rank});
      call.up_bias = view(up_bias, {rows, out});
      call.code = view(code, {rows});
      call.activations = &activations;
    }
    if (!ids.empty()) call.ids = view(ids, {ids.size()});

    std::vector<double> expected(y.size());
    std::vector<double> sizes_of(y.size());  // of what was summed
    for (std::size_t token = 0; token < batch * tokens; ++token) {
      const std::size_t place = token / tokens;
      const std::size_t row =
          ids.empty() ? (rows == 1 ? 0 : place) : static_cast<std::size_t>(ids[ids.size() == 1 ? 0 : place]);
      const bool skipped = !used || (!ids.empty() && row == 0);
      std::vector<double> hidden(rank);
      std::vector<double> hidden_size(rank);
      for (std::size_t r = 0; r < rank && !skipped; ++r) {
        double sum = bottleneck ? value_of(down_bias[row * rank + r]) : 0;
        double size = std::abs(sum);
        for (std::size_t k = 0; k < in; ++k) {
          const double product = value_of(x[token * in + k]) * value_of(down[(row * in + k) * rank + r]);
          sum += product;
          size += std::abs(product);
        }
        const std::int64_t place_of = ((code[row] % 6) + 6) % 6;
        hidden[r] = bottleneck ? activated(activations[static_cast<std::size_t>(place_of)], sum) : sum;
        hidden_size[r] = size;
      }
      for (std::size_t n = 0; n < out; ++n) {
        double sum = value_of(y[token * out + n]) + (biased ? value_of(bias[n]) : 0);
        double size = std::abs(sum) + 2;
        if (!skipped) {
          if (bottleneck) sum += value_of(up_bias[row * out + n]);
          for (std::size_t r = 0; r < rank; ++r) {
            const double weight = value_of(up[(row * rank + r) * out + n]);
            sum += hidden[r] * weight;
            size += std::abs(weight) * (hidden_size[r] + 1);
          }
        }
        expected[token * out + n] = sum;
        sizes_of[token * out + n] = size;
      }
    }

    for (const Table* table : runnable_tables()) {
      Guarded<T> result = in_place ? y : Guarded<T>(y.size());
      if (in_place) call.y.data = result.data();
      call.run(call.checked(), result.data(), *table, Backwards());
      for (std::size_t i = 0; i < result.size(); ++i) {
        const double allowed = sizes_of[i] * 1e-6 + std::abs(expected[i]) * step<T>() * 1.01 + 1e-7;
        ASSERT_NEAR(value_of(result[i]), expected[i], allowed)
            << table->name << " batch " << batch << " tokens " << tokens << " in " << in << " out " << out
            << " rank " << rank << " at " << i;
      }
    }
  }

  std::size_t below(std::size_t end) { return random_() % end; }

  std::mt19937 random_{7};
};

TYPED_TEST_SUITE(LowRankTest, AllTypes);

TYPED_TEST(LowRankTest, EveryRankAndManySizes) {
  for (std::size_t rank = 0; rank <= 70; ++rank) {
    const Sizes sizes{1 + this->below(4), 1 + this->below(40), 1 + this->below(90), 1 + this->below(150), rank, 5};
    std::vector<std::int64_t> ids(sizes.batch);
    for (auto& id : ids) id = static_cast<std::int64_t>(this->below(sizes.rows));
    this->check(sizes, ids, rank % 2 == 0, rank % 3 == 0, rank % 5 != 0);
  }
}

TYPED_TEST(LowRankTest, EveryCountOfTokens) {
  for (std::size_t tokens = 1; tokens <= 40; ++tokens) {
    this->check({2, tokens, 19, 67, 1 + this->below(20), 3}, {2, 1}, tokens % 2 == 1, false, true);
  }
}

TYPED_TEST(LowRankTest, OneTokenEach) {
  for (std::size_t rank : {1U, 4U, 8U, 15U, 16U, 17U, 33U, 64U}) {
    this->check({8, 1, 300, 417, rank, 9}, {1, 2, 3, 0, 5, 5, 7, 8}, false, false, true);
  }
}

TYPED_TEST(LowRankTest, ManyTokensOfOneAdapter) {
  this->check({3, 70, 40, 48, 16, 2}, {1}, false, true, false);
  this->check({9, 130, 16, 32, 5, 2}, {1}, true, false, true);
  this->check({3, 70, 40, 48, 16, 2}, {0}, true, true, false);
}

TYPED_TEST(LowRankTest, RowsOfTheBatch) {
  this->check({4, 7, 33, 31, 12, 4}, {}, false, false, true);  // row 0 is an adapter as the others
  this->check({4, 7, 33, 31, 12, 1}, {}, true, false, true);
}

TYPED_TEST(LowRankTest, NothingToDo) {
  this->check({0, 4, 8, 8, 4, 3}, {1}, false, false, false);
  this->check({2, 0, 8, 8, 4, 3}, {1, 2}, true, true, false);
  this->check({2, 3, 0, 8, 4, 3}, {1, 2}, true, true, false);
  this->check({2, 3, 8, 0, 4, 3}, {1, 2}, false, false, false);
  this->check({2, 3, 8, 8, 0, 3}, {1, 2}, true, false, false);
  this->check({2, 3, 8, 8, 0, 3}, {1, 2}, false, true, true);
}

TYPED_TEST(LowRankTest, NotUsed) {
  this->check({2, 3, 8, 21, 4, 3}, {1, 2}, true, false, false, false);
  this->check({2, 3, 8, 21, 4, 3}, {1, 2}, false, true, true, false);
}

TEST(LowRank, NotANumberStaysWithItsAdapter) {
  const std::size_t in = 20, out = 37, rank = 11, tokens = 9;
  for (const Table* table : runnable_tables()) {
    std::vector<float> y(3 * tokens * out, 1.0F), x(3 * tokens * in, 1.0F);
    std::vector<float> down(3 * in * rank, 1.0F), up(3 * rank * out, 1.0F);
    for (std::size_t i = 0; i < in * rank; ++i) down[in * rank + i] = i % 2 == 0 ? NAN : INFINITY;
    for (std::size_t i = 0; i < rank * out; ++i) up[rank * out + i] = NAN, up[i] = NAN;
    const std::vector<std::int64_t> ids{2, 1, 0};
    LowRankCall call{};
    call.where = "test";
    call.pair = Pair::float_float;
    call.y = view(y, {3, tokens, out});
    call.x = view(x, {3, tokens, in});
    call.down = view(down, {3, in, rank});
    call.up = view(up, {3, rank, out});
    call.ids = view(ids, {3});
    call.run(call.checked(), y.data(), *table, Backwards());
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t row = i / (tokens * out);
      if (row == 1) {
        ASSERT_TRUE(std::isnan(y[i])) << table->name;
      } else {
        ASSERT_EQ(y[i], row == 0 ? 1.0F + in * rank : 1.0F) << table->name;
      }
    }
  }
}

TEST(LowRank, ActivationsKeepTheirAccuracy) {
  // down is 1 x 1 and the identity: what comes out is the activation of x
  const std::vector<Activation> all{Activation::relu, Activation::gelu, Activation::gelu_new,
                                    Activation::silu, Activation::tanh, Activation::linear};
  std::vector<float> x;
  for (float value = -20; value < 20; value += 0.0037F) x.push_back(value);
  for (float value = 1e-30F; value < 1; value *= 3) x.insert(x.end(), {value, -value});
  x.insert(x.end(), {0.0F, -0.0F, 80.0F, -80.0F, 200.0F, -200.0F, 1e30F, -1e30F});
  const std::vector<float> one{1.0F}, none{0.0F};
  for (const Activation activation : all) {
    for (const Table* table : runnable_tables()) {
      std::vector<float> y(x.size());
      const std::vector<Activation> activations{activation};
      LowRankCall call{};
      call.where = "test";
      call.pair = Pair::float_float;
      call.y = view(y, {1, x.size(), 1});
      call.x = view(x, {1, x.size(), 1});
      call.down = call.up = view(one, {1, 1, 1});
      call.down_bias = call.up_bias = view(none, {1, 1});
      call.activations = &activations;
      call.run(call.checked(), y.data(), *table, Backwards());
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double expected = activated(activation, static_cast<double>(x[i]));
        ASSERT_NEAR(static_cast<double>(y[i]), expected, 1e-6 * std::max(1.0, std::abs(expected)))
            << table->name << " " << static_cast<int>(activation) << " of " << x[i];
      }
    }
  }
}

TEST(LowRank, WhatIsNotANumberIsNotActivated) {
  const std::vector<float> x{NAN}, one{1.0F}, none{0.0F};
  for (const Activation activation : {Activation::relu, Activation::gelu, Activation::gelu_new, Activation::silu,
                                      Activation::tanh, Activation::linear}) {
    for (const Table* table : runnable_tables()) {
      std::vector<float> y(1);
      const std::vector<Activation> activations{activation};
      LowRankCall call{};
      call.where = "test";
      call.pair = Pair::float_float;
      call.y = view(y, {1, 1, 1});
      call.x = view(x, {1, 1, 1});
      call.down = call.up = view(one, {1, 1, 1});
      call.down_bias = call.up_bias = view(none, {1, 1});
      call.activations = &activations;
      call.run(call.checked(), y.data(), *table, Backwards());
      EXPECT_TRUE(std::isnan(y[0])) << table->name << " " << static_cast<int>(activation);
    }
  }
}

}  // namespace
}  // namespace adexport::kernels::testing
