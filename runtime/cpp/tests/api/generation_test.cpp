// Texts through the public header: the tokens that the Python runtime generates, and what callers may do.
#include <cstdlib>
#include <set>

#include "cases.hpp"

namespace adexport::testing {
namespace {

class Texts : public WithBundles {
 protected:
  struct Expected {
    std::vector<Prompt> prompts;
    std::vector<std::vector<std::int64_t>> ids;
    std::vector<std::string> reasons;
    Sampling sampling;
  };

  static Expected read(const std::string& name) {
    const auto file = case_named(name);
    Expected expected;
    for (std::size_t row = 0; row < file.adapters.size(); ++row) {
      expected.prompts.push_back({file.arrays.at("prompt." + std::to_string(row)).integers, file.adapters[row]});
      expected.ids.push_back(file.arrays.at("generated." + std::to_string(row)).integers);
    }
    expected.reasons = split(file.metadata.at("reasons"), ',');
    const auto number = [&](const char* key, double otherwise) {
      const auto found = file.metadata.find(key);
      return found == file.metadata.end() ? otherwise : std::strtod(found->second.c_str(), nullptr);
    };
    expected.sampling.max_new_tokens = 12;
    expected.sampling.temperature = number("temperature", 0);
    expected.sampling.top_k = static_cast<std::int64_t>(number("top_k", 0));
    expected.sampling.top_p = number("top_p", 0);
    if (file.metadata.count("seed") != 0) {
      expected.sampling.seed = static_cast<std::uint64_t>(number("seed", 0));
    }
    return expected;
  }

  static void check(const std::string& name) {
    const auto expected = read(name);
    auto engine = open_engine("decoder");
    const auto texts = engine.generate(expected.prompts, expected.sampling, 3);
    ASSERT_EQ(texts.size(), expected.ids.size());
    for (std::size_t row = 0; row < texts.size(); ++row) {
      EXPECT_EQ(texts[row].ids, expected.ids[row]) << row;
      EXPECT_EQ(texts[row].reason == Reason::eos ? "eos" : "length", expected.reasons[row]) << row;
      EXPECT_FALSE(texts[row].error);
    }
  }
};

TEST_F(Texts, GreedyAsInPython) {
  check("decoder.greedy");
}
TEST_F(Texts, SampledAsInPython) {
  check("decoder.sampled");
}

TEST_F(Texts, TellTokensAndMayBeEnded) {
  auto expected = read("decoder.greedy");
  auto engine = open_engine("decoder");
  std::vector<std::vector<std::int64_t>> told(expected.prompts.size());
  const auto texts = engine.generate(expected.prompts, expected.sampling, 2, [&](std::size_t row, std::int64_t id) {
    told[row].push_back(id);
    return row != 1 || told[row].size() < 2;
  });
  for (std::size_t row = 0; row < texts.size(); ++row) EXPECT_EQ(told[row], texts[row].ids) << row;
  EXPECT_EQ(texts[1].reason, Reason::cancelled);
  EXPECT_EQ(texts[1].ids.size(), 2U);
  EXPECT_EQ(texts[2].ids, expected.ids[2]);
}

TEST_F(Texts, ThrowOnWhatTheCallerThrew) {
  auto expected = read("decoder.greedy");
  auto engine = open_engine("decoder");
  EXPECT_THROW(engine.generate(expected.prompts, expected.sampling, 0,
                               [](std::size_t, std::int64_t) -> bool { throw std::logic_error("enough"); }),
               std::logic_error);
}

TEST_F(Texts, EndAtTokensOfTheCallersChoice) {
  auto expected = read("decoder.greedy");
  auto engine = open_engine("decoder");
  const auto end = expected.ids[0][0];
  expected.sampling.eos_ids = {end};
  const auto texts = engine.generate({expected.prompts[0]}, expected.sampling);
  EXPECT_EQ(texts[0].reason, Reason::eos);
  EXPECT_EQ(texts[0].ids, (std::vector<std::int64_t>{end}));
  expected.sampling.eos_ids.emplace();
  EXPECT_EQ(engine.generate({expected.prompts[0]}, expected.sampling)[0].reason, Reason::length);
}

TEST_F(Texts, AreRefusedBeforeAnythingRuns) {
  auto engine = open_engine("decoder");
  Sampling wild;
  wild.max_new_tokens = 0;
  wild.temperature = -1;
  const auto settings = refusal([&] { engine.generate({{{5}, std::nullopt}}, wild); });
  ASSERT_TRUE(settings);
  EXPECT_EQ(settings->kind(), Kind::request);
  EXPECT_EQ(settings->problems().size(), 2U);
  EXPECT_EQ(refusal([&] { engine.generate({{{}, std::nullopt}}); })->kind(), Kind::request);
  EXPECT_EQ(refusal([&] { engine.generate({{{5, 1000}, std::nullopt}}); })->kind(), Kind::request);
  Sampling few;
  few.max_new_tokens = 4;
  EXPECT_EQ(refusal([&] { engine.generate({{{5}, "nobody"}}, few); })->kind(), Kind::unknown_adapter);
  EXPECT_EQ(refusal([&] { open_engine("encoder").generate({{{5}, std::nullopt}}, few); })->kind(), Kind::bundle);
  EXPECT_TRUE(engine.generate({}, few).empty());
}

TEST_F(Texts, TakeOldStructures) {
  auto engine = open_engine("decoder");
  adexport_sampling sampling = ADEXPORT_SAMPLING_INIT;
  sampling.max_new_tokens = 2;
  sampling.size = offsetof(adexport_sampling, temperature);
  sampling.temperature = -1;  // beyond what the caller's version has
  const std::int64_t ids[] = {5, 6};
  const adexport_prompt prompt{ids, 2, nullptr};
  adexport_generated* generated = nullptr;
  adexport_error* error =
      adexport_engine_generate(engine.get(), &prompt, 1, &sampling, 0, nullptr, nullptr, &generated);
  ASSERT_EQ(error, nullptr) << adexport_error_message(error);
  std::size_t count = 0;
  adexport_generated_ids(generated, 0, &count);
  EXPECT_EQ(count, 2U);
  EXPECT_EQ(adexport_generated_error(generated, 0), nullptr);
  EXPECT_EQ(adexport_generated_ids(generated, 1, &count), nullptr);
  EXPECT_EQ(count, 0U);
  adexport_generated_free(generated);
}

}  // namespace
}  // namespace adexport::testing
