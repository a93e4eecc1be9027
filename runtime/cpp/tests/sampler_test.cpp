// The next token: numbers that numpy and the Python sampler printed say what is right.
#include "generation/sampler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "errors.hpp"
#include "generation/choice.hpp"
#include "generation/exponential.hpp"
#include "generation/sums.hpp"

namespace adexport::core {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Float32 in Python: ((i * 7919 + step * 104729) % 1009).astype(float32) / float32(97)
std::vector<float> logits(std::int64_t count, std::int64_t step) {
  std::vector<float> made;
  for (std::int64_t at = 0; at < count; ++at) {
    made.push_back(static_cast<float>((at * 7919 + step * 104729) % 1009) / 97.0F);
  }
  return made;
}

std::int64_t next(Sampler& sampler, const std::vector<float>& values) {
  return sampler.next(values.data(), values.size());
}

std::string refused(Sampler& sampler, const std::vector<float>& values) {
  try {
    next(sampler, values);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::request);
    EXPECT_EQ(error.problems().front().code, code::not_finite);
    return error.problems().front().got;
  }
  return "";
}

TEST(Random, DrawsWhatNumpyDraws) {
  struct Case {
    std::uint64_t seed;
    double numbers[4];
  };
  // numpy.random.Generator(numpy.random.PCG64(seed)).random().hex()
  const Case cases[] = {
      {0U, {0x1.461fd79fb3850p-1, 0x1.1442f7e20b674p-2, 0x1.4fa7b529d9bd0p-5, 0x1.0ec9ed84d0bc0p-6}},
      {1U, {0x1.060d7be6f245cp-1, 0x1.e6a32d7782a55p-1, 0x1.273d27b04760cp-3, 0x1.e5b5615da558dp-1}},
      {12345U, {0x1.d1958c6d97fe0p-3, 0x1.445c4c5727930p-2, 0x1.984049046889dp-1, 0x1.5a3e0d5d490ddp-1}},
      {4294967296U, {0x1.c78bd7c50b582p-1, 0x1.1d4132d1fc63bp-1, 0x1.9a109ff09b1bdp-1, 0x1.e9bc2dd875173p-1}},
      {18446744073709551615U,
       {0x1.5c2c74f5188eap-1, 0x1.b0ccb3ebe6704p-1, 0x1.e52b195bc2d00p-8, 0x1.ca04d55e33445p-1}},
  };
  for (const Case& each : cases) {
    Random random(each.seed);
    for (const double number : each.numbers) EXPECT_EQ(random.next(), number) << each.seed;
  }
}

TEST(Random, IsDrawnAfreshWithoutASeed) {
  Random first(std::nullopt), second(std::nullopt);
  EXPECT_NE(first.next(), second.next());
}

TEST(Sums, RoundAsNumpyRounds) {
  struct Case {
    std::int64_t count;
    float narrow;
    double wide;
  };
  // x.sum() and x.sum(dtype=float64) of x = logits(count, 3) + float32(0.1)
  const Case cases[] = {
      {7, 0x1.2979eep+5F, 0x1.2979ee58p+5},          {8, 0x1.4529b4p+5F, 0x1.4529b338p+5},
      {100, 0x1.0851d2p+9F, 0x1.0851d0a8cp+9},       {129, 0x1.51c7a8p+9F, 0x1.51c7a789p+9},
      {1000, 0x1.4a7ab8p+12F, 0x1.4a7ab8e34ep+12},   {9001, 0x1.745174p+15F, 0x1.745175580ccp+15},
      {20000, 0x1.9db8e6p+16F, 0x1.9db8e5ca9f8p+16},
  };
  for (const Case& each : cases) {
    std::vector<float> values = logits(each.count, 3);
    for (float& value : values) value += 0.1F;
    EXPECT_EQ(pairwise_sum<float>(values.data(), values.size()), each.narrow) << each.count;
    EXPECT_EQ(wide_sum(values.data(), values.size()), each.wide) << each.count;
  }
}

TEST(Exponential, IsNumpysToTheBit) {
  std::vector<float> values = {-0.0F, -6.7F, -13.4F, -26.8F, -33.5F, -53.6F, -67.0F, -87.1F, -100.5F};
  // numpy.exp of float32, on AVX2 and on AVX-512
  const std::vector<float> expected = {1.0F,
                                       0x1.42ad1ep-10F,
                                       0x1.96b7f4p-20F,
                                       0x1.4315fep-39F,
                                       0x1.973c0ap-49F,
                                       0x1.97c080p-78F,
                                       0x1.43e7fep-97F,
                                       0x1.445156p-126F,
                                       0x1p-145F};
  exponentiate(values.data(), values.size());
  EXPECT_EQ(values, expected);
}

TEST(Exponential, IsTheSameWithoutVectors) {
  std::vector<float> values = {-kInfinity, -103.97209F, -103.9720F, -1000.0F, -std::numeric_limits<float>::max()};
  for (int at = 0; at < 200'000; ++at) values.push_back(static_cast<float>(at) * -0.00053F);
  std::vector<float> fast = values, plain = values;
  exponentiate(fast.data(), fast.size());
  exponentiate_portably(plain.data(), plain.size());
  EXPECT_EQ(fast, plain);
  EXPECT_EQ(fast[0], 0.0F);
  EXPECT_EQ(fast[3], 0.0F);
  for (std::size_t at = 0; at < values.size(); ++at) {
    const double exact = std::exp(static_cast<double>(values[at]));
    ASSERT_NEAR(static_cast<double>(fast[at]), exact, exact * 2e-7 + 0x1p-149) << values[at];
  }
}

struct Drawn {
  std::int64_t count;
  Sampling settings;
  std::vector<std::int64_t> tokens;
};

Sampling with(double temperature, std::int64_t top_k, double top_p, double penalty) {
  Sampling made;
  made.temperature = temperature;
  if (top_k > 0) made.top_k = top_k;
  if (top_p > 0) made.top_p = top_p;
  made.repetition_penalty = penalty;
  made.seed = 11;
  return made;
}

TEST(Sampler, DrawsWhatPythonDraws) {
  // Sampler(Sampling(seed=11, …), [1, 2, count - 1, count + 5]).next(logits(count, step)) for step in range(12)
  const Drawn cases[] = {
      {50, with(1.0, 0, 0, 1), {7, 26, 31, 3, 8, 46, 6, 4, 49, 34, 13, 25}},
      {50, with(0.7, 5, 0, 1), {7, 19, 24, 3, 8, 46, 12, 4, 49, 34, 13, 25}},
      {1000, with(1.3, 0, 0.9, 1), {126, 501, 611, 29, 141, 924, 78, 136, 947, 621, 369, 501}},
      {5000, with(2.5, 400, 0.5, 1), {620, 2518, 2998, 194, 753, 4623, 381, 670, 4731, 3094, 1866, 2544}},
      {5000, with(0.9, 0, 0, 1.3), {640, 2505, 3005, 149, 749, 4636, 363, 664, 4738, 3101, 1853, 2551}},
      {30000,
       with(4.0, 0, 0.97, 0.8),
       {3853, 14979, 18048, 861, 4434, 27844, 2116, 3895, 28448, 18653, 11067, 15343}},
      {300, with(0, 0, 0, 1.5), {277, 91, 149, 207, 265, 46, 104, 162, 220, 278, 92, 150}},
      {9000, with(1.1, 3, 0, 1), {1774, 4859, 5926, 939, 2006, 8118, 104, 1171, 8292, 5323, 3363, 4430}},
  };
  for (const Drawn& each : cases) {
    Sampler sampler(each.settings, {1, 2, each.count - 1, each.count + 5});
    std::vector<std::int64_t> tokens;
    for (std::int64_t step = 0; step < 12; ++step) tokens.push_back(next(sampler, logits(each.count, step)));
    EXPECT_EQ(tokens, each.tokens) << each.count;
  }
}

TEST(Sampler, TheFirstOfEqualsIsGreedy) {
  Sampler sampler(Sampling{}, {0});
  EXPECT_EQ(next(sampler, {0, 2, 1, 2}), 1);
  EXPECT_EQ(next(sampler, {-kInfinity, -5, -kInfinity, -5}), 1);
}

TEST(Sampler, ThePenaltySeesWhatWasGenerated) {
  Sampling settings;
  settings.repetition_penalty = 2;
  Sampler sampler(settings, {4});
  const std::vector<float> values = {1.0F, 3.0F, 2.9F, -1.0F, 5.0F};
  // 4 becomes 2.5; then 1 is taken and becomes 1.5, then 2, and so on: the largest of what is left
  for (const std::int64_t token : {1, 2, 4, 4}) EXPECT_EQ(next(sampler, values), token);
}

TEST(Sampler, ThePenaltyPassesOverIdsBeyondTheLogits) {
  Sampling settings;
  settings.repetition_penalty = 3;
  Sampler sampler(settings, {1, 2, 99});
  EXPECT_EQ(next(sampler, {1, 2}), 0);
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  const double shares[] = {0.4, 0.3, 0.15, 0.1, 0.05};
  std::vector<float> values;
  for (const double share : shares) values.push_back(static_cast<float>(std::log(share)));
  Sampling settings = with(1.0, 0, 0, 1);
  Sampler sampler(settings, {0});
  int counts[5] = {};
  constexpr int kDraws = 20'000;
  for (int draw = 0; draw < kDraws; ++draw) ++counts[next(sampler, values)];
  double square = 0;  // chi-square, 4 degrees of freedom: 23.5 is passed once in 10,000; the seed is fixed
  for (int at = 0; at < 5; ++at) {
    const double expected = shares[at] * kDraws;
    square += (counts[at] - expected) * (counts[at] - expected) / expected;
  }
  EXPECT_LT(square, 23.5);
}

TEST(Sampler, LogitsThatAreNotFiniteAreRefused) {
  const std::pair<const char*, std::vector<float>> broken[] = {
      {"NaN", {0, std::nanf(""), 9}},
      {"infinity", {0, kInfinity, 9}},
      {"minus infinity for every token", {-kInfinity, -kInfinity, -kInfinity}},
  };
  for (const auto& [got, values] : broken) {
    for (const double temperature : {0.0, 1.0}) {
      for (const Sampling& settings :
           {with(temperature, 0, 0, 1), with(temperature, 1, 0.5, 1), with(temperature, 0, 0, 1.5)}) {
        Sampler sampler(settings, {2});
        EXPECT_EQ(refused(sampler, values), got);
      }
    }
  }
  Sampler sampler(with(1e-3, 0, 0, 1), {0});
  EXPECT_EQ(refused(sampler, {1e37F, 0}), "infinity");
}

TEST(Choice, TheLargestAreWhatSortingFinds) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> scores(1 + random() % 6000);
    const bool ties = random() % 2 == 0;
    for (float& score : scores) score = static_cast<float>(random() % (ties ? 9 : 100'000)) / 7;
    const std::size_t count = 1 + random() % std::min<std::size_t>(scores.size(), 300);
    std::vector<float> sorted = scores;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    std::vector<std::size_t> expected;
    for (std::size_t at = 0; at < scores.size(); ++at) {
      if (scores[at] >= sorted[count - 1]) expected.push_back(at);
    }
    ASSERT_EQ(largest(scores, count), expected);
  }
}

TEST(Choice, ADrawFallsWhereTheSumsSay) {
  std::mt19937 random(4);
  const float kinds[] = {0, 0, 1e-30F, 0.25F, 1, 3.5F};
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> weights(1 + random() % 600);
    for (float& weight : weights) weight = kinds[random() % 6];
    weights.push_back(1);
    const double uniform = round % 5 == 0 ? 1 - 0x1p-53 : static_cast<double>(random()) / 4294967296.0;
    const std::size_t place = draw(weights, uniform);
    ASSERT_GT(weights[place], 0.0F);
    double before = 0, whole = 0;
    for (std::size_t at = 0; at < weights.size(); ++at) {
      if (at < place) before += static_cast<double>(weights[at]);
      whole += static_cast<double>(weights[at]);
    }
    ASSERT_LE(before - 1e-9, uniform * whole);
    ASSERT_GE(before + static_cast<double>(weights[place]) + 1e-9, uniform * whole);
  }
}

TEST(Choice, OfEqualsTheFirstLeavesTheNucleusFirst) {
  const std::vector<float> scores(10, 0.0F), weights(10, 1.0F);
  EXPECT_EQ(nucleus(scores, weights, 0.25), (std::vector<std::size_t>{7, 8, 9}));
  EXPECT_EQ(nucleus(scores, weights, 1e-9), (std::vector<std::size_t>{9}));
}

TEST(Sampling, WhatIsOutOfRangeIsAllNamed) {
  check(Sampling{});
  Sampling settings = with(1e-7, 0, 0, 1000);
  settings.max_new_tokens = 0;
  settings.top_k = 0;
  settings.top_p = 1.5;
  settings.eos = std::vector<std::int64_t>{3, -1};
  try {
    check(settings);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::request);
    std::string subjects;
    for (const Problem& problem : error.problems()) {
      EXPECT_EQ(problem.code, code::bad_input);
      subjects += problem.subject + "=" + problem.got + " ";
    }
    EXPECT_EQ(subjects,
              "max_new_tokens=0 temperature=1e-07 top_k=0 top_p=1.5 repetition_penalty=1000.0 eos=[3, -1] ");
    EXPECT_EQ(error.problems()[1].expected, "0, or 1e-06 to 1000000.0");
  }
  for (const double bad : {-1.0, std::nan(""), 1e7}) {
    EXPECT_THROW(check(with(bad, 0, 0, 1)), Error);
    EXPECT_THROW(check(with(0, 0, 0, bad)), Error);
  }
  settings = with(1, 0, 0, 1);
  settings.top_p = 0;
  EXPECT_THROW(check(settings), Error);
  for (const double good : {1e-6, 1e6}) check(with(good, 1, 1, 1));
}

}  // namespace
}  // namespace adexport::core
