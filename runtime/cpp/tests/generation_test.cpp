// Texts side by side are the texts that each would be alone, whoever joins, leaves or fails meanwhile.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "bank_support.hpp"
#include "errors.hpp"
#include "generation/generate.hpp"
#include "generation/sampler.hpp"
#include "simulated_backend.hpp"

namespace adexport::core {
namespace {

using namespace testing;

Manifest generating() {
  Manifest manifest;
  manifest.base_name = "simulated";
  manifest.task = "text-generation";
  manifest.max_positions = 1500;
  manifest.slots = {"lora"};
  manifest.slot_inputs = slots();
  manifest.batch_rows = true;
  Input ids;
  ids.name = "input_ids";
  ids.high = kVocabulary - 1;
  manifest.inputs = {ids};
  Cache cache;
  cache.kv_heads = 2;
  cache.size = 4;
  manifest.generation = Generation{"lengths", "past_lengths", "logits_at", {cache}, {5}};
  return manifest;
}

// A bank with adapters, and what generates with it.
struct World {
  Manifest manifest = generating();
  Bank bank{slots(), Element::fp32};
  SimulatedBackend backend;
  std::map<std::string, Adapter> adapters;

  World() {
    for (int index = 0; index < kFamilies; ++index) {
      bind("n" + std::to_string(index), of_family(index, static_cast<float>(index + 1), 2 + 3 * index));
    }
  }

  void bind(const std::string& name, const Adapter& adapter) {
    adapters[name] = adapter;
    bank.put(name, tensors_of(adapter));
  }

  std::vector<Generated> run(const std::vector<Prompt>& prompts, const Sampling& sampling, std::size_t max_batch,
                             const OnToken& on_token = {}) {
    return generate(backend, manifest, bank, prompts, sampling, max_batch, on_token);
  }

  // A text alone, without a batch, a bank or a backend.
  Generated alone(const Prompt& prompt, Sampling sampling, std::size_t row) const {
    if (sampling.seed) *sampling.seed += row;
    Sampler sampler(sampling, prompt.ids);
    const std::uint64_t mark = mark_of(prompt.adapter ? adapters.at(*prompt.adapter) : Adapter{});
    std::vector<std::uint64_t> cache;
    for (const std::int64_t id : prompt.ids) cache.push_back(mixed(mark, static_cast<std::uint64_t>(id)));
    const std::vector<std::int64_t> ends = sampling.eos.value_or(manifest.generation->eos_ids);
    Generated made;
    made.reason = Reason::length;
    while (static_cast<std::int64_t>(made.ids.size()) < sampling.max_new_tokens) {
      const std::vector<float> logits = logits_of(cache);
      made.ids.push_back(sampler.next(logits.data(), logits.size()));
      if (std::find(ends.begin(), ends.end(), made.ids.back()) != ends.end()) {
        made.reason = Reason::eos;
        break;
      }
      cache.push_back(mixed(mark, static_cast<std::uint64_t>(made.ids.back())));
    }
    return made;
  }

  void expect_alone(const std::vector<Generated>& results, const std::vector<Prompt>& prompts,
                    const Sampling& sampling, const std::set<std::size_t>& but = {}) const {
    ASSERT_EQ(results.size(), prompts.size());
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      if (but.count(row) != 0) continue;
      const Generated expected = alone(prompts[row], sampling, row);
      EXPECT_EQ(results[row].ids, expected.ids) << row;
      EXPECT_EQ(results[row].reason, expected.reason) << row;
      EXPECT_FALSE(results[row].error) << row;
    }
  }
};

std::vector<Prompt> some_prompts(std::mt19937& random, std::size_t count, std::size_t longest) {
  std::vector<Prompt> made(count);
  for (Prompt& prompt : made) {
    prompt.ids.resize(1 + random() % longest);
    for (std::int64_t& id : prompt.ids) id = static_cast<std::int64_t>(random() % kVocabulary);
    const std::size_t adapter = random() % (kFamilies + 1);
    if (adapter < kFamilies) prompt.adapter = "n" + std::to_string(adapter);
  }
  return made;
}

Sampling drawing(std::int64_t tokens) {
  Sampling made;
  made.max_new_tokens = tokens;
  made.temperature = 0.8;
  made.seed = 18446744073709551613U;  // the seeds of later rows begin at 0 again
  return made;
}

Error refusal(World& world, const std::vector<Prompt>& prompts, const Sampling& sampling = {}) {
  const Error error = error_of([&] { world.run(prompts, sampling, 0); });
  EXPECT_TRUE(world.backend.steps.empty());
  return error;
}

TEST(Generation, TextsSideBySideAreThoseThatEachIsAlone) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    World world;
    const std::vector<Prompt> prompts = some_prompts(random, 1 + random() % 14, round % 3 == 0 ? 40 : 6);
    Sampling sampling = drawing(static_cast<std::int64_t>(1 + random() % 25));
    if (round % 4 == 0) sampling.temperature = 0;
    if (round % 5 == 0) sampling.top_k = 7;
    if (round % 6 == 0) sampling.top_p = 0.8;
    if (round % 7 == 0) sampling.repetition_penalty = 1.4;
    if (round % 8 == 0) sampling.eos = std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8};
    if (round % 9 == 0) sampling.eos = std::vector<std::int64_t>{};
    const std::size_t rows = 1 + random() % 5;
    world.expect_alone(world.run(prompts, sampling, rows), prompts, sampling);
    EXPECT_EQ(world.backend.rows, static_cast<std::int64_t>(std::min(rows, prompts.size())));
    if (HasFailure()) return;
  }
}

TEST(Generation, EightRowsUnlessSaidOtherwise) {
  World world;
  std::mt19937 random(2);
  world.run(some_prompts(random, 20, 4), drawing(3), 0);
  EXPECT_EQ(world.backend.rows, 8);
}

TEST(Generation, LongPromptsGoInByPiecesWhileOthersDecode) {
  World world;
  std::mt19937 random(3);
  std::vector<Prompt> prompts = some_prompts(random, 5, 5);
  prompts[2] = some_prompts(random, 1, 1).front();
  prompts[2].adapter = "n0";
  prompts[2].ids.resize(1300);
  for (std::int64_t& id : prompts[2].ids) id = static_cast<std::int64_t>(random() % kVocabulary);
  Sampling sampling = drawing(40);
  sampling.eos = std::vector<std::int64_t>{};
  std::vector<std::size_t> told;
  const OnToken on_token = [&](std::size_t row, std::int64_t) {
    told.push_back(row);
    return false;
  };
  world.expect_alone(world.run(prompts, sampling, 4, on_token), prompts, sampling);
  std::int64_t widest = 0;
  std::vector<std::int64_t> pieces;
  for (const auto& step : world.backend.steps) {
    widest = std::max(widest, step.width);
    if (step.width > 100) pieces.push_back(step.width);
  }
  EXPECT_EQ(widest, 512);
  EXPECT_EQ(pieces, (std::vector<std::int64_t>{512, 512, 276}));
  // others get tokens before the long prompt is in
  EXPECT_GT(std::find(told.begin(), told.end(), 2U) - told.begin(), 4);
}

TEST(Generation, PromptsRunTogetherWhereLittleIsPadding) {
  World world;
  std::vector<Prompt> prompts(6);
  const std::size_t lengths[] = {10, 9, 8, 3, 3, 200};
  for (std::size_t row = 0; row < prompts.size(); ++row) prompts[row].ids.assign(lengths[row], 7);
  Sampling sampling = drawing(4);
  sampling.eos = std::vector<std::int64_t>{};
  world.expect_alone(world.run(prompts, sampling, 6), prompts, sampling);
  std::vector<std::int64_t> rows;
  for (const auto& step : world.backend.steps) {
    if (step.width > 1) rows.push_back(step.rows);
    EXPECT_LE(static_cast<double>(step.width * step.rows), 1.25 * static_cast<double>(step.tokens));
  }
  EXPECT_EQ(rows, (std::vector<std::int64_t>{3, 2, 1}));
}

TEST(Generation, OneBindingServesAllStepsThatDecode) {
  World world;
  std::vector<Prompt> prompts(2);
  for (Prompt& prompt : prompts) prompt.ids = {1, 2, 3};
  Sampling sampling = drawing(10);
  sampling.eos = std::vector<std::int64_t>{};
  world.run(prompts, sampling, 2);
  EXPECT_EQ(world.backend.steps.size(), 1U + 9);
  EXPECT_EQ(world.backend.bindings, 2);
}

TEST(Generation, ARowKeepsTheWeightsThatItBeganWith) {
  World world;
  std::vector<Prompt> prompts(3);
  for (Prompt& prompt : prompts) {
    prompt.ids = {4, 8, 15};
    prompt.adapter = "n0";
  }
  prompts[1].adapter = "n1";
  Sampling sampling = drawing(12);
  sampling.eos = std::vector<std::int64_t>{};
  const Generated before = world.alone(prompts[0], sampling, 0);
  const std::vector<Generated> results = world.run(prompts, sampling, 1, [&](std::size_t row, std::int64_t) {
    if (row == 0) world.bind("n0", lora(50, 30));
    if (row == 1 && world.adapters.erase("n1") != 0) world.bank.drop("n1");
    return false;
  });
  EXPECT_EQ(results[0].ids, before.ids);
  world.adapters["n1"] = of_family(1, 2, 5);
  world.expect_alone(results, prompts, sampling, {0});
  EXPECT_NE(results[2].ids, world.alone(prompts[2], sampling, 0).ids);
}

TEST(Generation, TheCallerEndsARow) {
  World world;
  std::mt19937 random(6);
  const std::vector<Prompt> prompts = some_prompts(random, 7, 5);
  Sampling sampling = drawing(20);
  sampling.eos = std::vector<std::int64_t>{};
  std::map<std::size_t, std::vector<std::int64_t>> told;
  const std::vector<Generated> results = world.run(prompts, sampling, 3, [&](std::size_t row, std::int64_t id) {
    told[row].push_back(id);
    return row == 2 && told[row].size() == 4;
  });
  world.expect_alone(results, prompts, sampling, {2});
  std::vector<std::int64_t> expected = world.alone(prompts[2], sampling, 2).ids;
  expected.resize(4);
  EXPECT_EQ(results[2].ids, expected);
  EXPECT_EQ(results[2].reason, Reason::cancelled);
  EXPECT_FALSE(results[2].error);
  for (std::size_t row = 0; row < prompts.size(); ++row) EXPECT_EQ(told[row], results[row].ids);
}

TEST(Generation, WhatTheCallerThrowsComesThrough) {
  World world;
  const std::vector<Prompt> prompts = {{{1, 2}, "n0"}, {{3}, std::nullopt}};
  EXPECT_THROW(world.run(prompts, drawing(5), 2, [](std::size_t, std::int64_t) -> bool { throw 7; }), int);
  world.expect_alone(world.run(prompts, drawing(5), 2), prompts, drawing(5));
}

TEST(Generation, ARowThatFailsDisturbsNoOther) {
  World world;
  std::mt19937 random(8);
  std::vector<Prompt> prompts = some_prompts(random, 9, 5);
  world.bind("nan", lora(99, 4));
  world.backend.broken.insert(mark_of(lora(99, 4)));
  world.bank.put_lazily("damaged", []() -> RowTensors { throw std::runtime_error("cannot be read"); });
  world.bank.put_lazily("refused", []() -> RowTensors {
    throw Error(Kind::adapter, "refused is refused", Problem{code::not_finite, "w"});
  });
  prompts[1].adapter = "nan";
  prompts[4].adapter = "damaged";
  prompts[6].adapter = "refused";
  const std::vector<Generated> results = world.run(prompts, drawing(15), 3);
  world.expect_alone(results, prompts, drawing(15), {1, 4, 6});
  for (const std::uint32_t row : {1U, 4U, 6U}) {
    EXPECT_EQ(results[row].reason, Reason::failed);
    ASSERT_TRUE(results[row].error);
  }
  EXPECT_EQ(results[1].error->problems().front().code, code::not_finite);
  EXPECT_EQ(results[4].error->kind(), Kind::request);
  EXPECT_EQ(results[4].error->problems().front().code, code::run_failed);
  EXPECT_EQ(results[4].error->problems().front().subject, "damaged");
  EXPECT_NE(results[4].error->problems().front().got.find("cannot be read"), std::string::npos);
  EXPECT_EQ(results[6].error->kind(), Kind::adapter);
}

TEST(Generation, AStepThatFailsEndsItsTextsAndNoOthers) {
  World world;
  std::mt19937 random(9);
  const std::vector<Prompt> prompts = some_prompts(random, 6, 1);
  Sampling sampling = drawing(8);
  sampling.eos = std::vector<std::int64_t>{};
  world.backend.before_step = [failed = false](std::size_t step) mutable {
    if (step == 3 && !std::exchange(failed, true)) throw std::runtime_error("the device is gone");
  };
  const std::vector<Generated> results = world.run(prompts, sampling, 2);
  world.expect_alone(results, prompts, sampling, {0, 1});
  for (const std::uint32_t row : {0U, 1U}) {
    EXPECT_EQ(results[row].reason, Reason::failed);
    ASSERT_TRUE(results[row].error);
    EXPECT_EQ(results[row].error->problems().front().code, code::run_failed);
    std::vector<std::int64_t> expected = world.alone(prompts[row], sampling, row).ids;
    expected.resize(3);
    EXPECT_EQ(results[row].ids, expected);
  }
}

TEST(Generation, ABankThatPagesServesAllRows) {
  World world;
  Bank small(slots(), Element::fp32, 1);
  for (const auto& [name, adapter] : world.adapters) small.put_lazily(name, loading(adapter));
  std::mt19937 random(10);
  const std::vector<Prompt> prompts = some_prompts(random, 12, 5);
  world.expect_alone(generate(world.backend, world.manifest, small, prompts, drawing(9), 4), prompts, drawing(9));
}

TEST(Generation, NothingIsGeneratedOfNothing) {
  World world;
  EXPECT_TRUE(world.run({}, drawing(3), 0).empty());
  EXPECT_EQ(world.backend.rows, 0);
}

TEST(GenerationRefusals, PromptsThatDoNotFitAreAllNamed) {
  World world;
  const std::vector<std::int64_t> many(1499, 1);
  const Error error =
      refusal(world, {{{1, 2}, {}}, {{}, {}}, {{1, kVocabulary}, {}}, {many, {}}, {{-1, 3}, {}}}, drawing(2));
  EXPECT_EQ(error.kind(), Kind::request);
  std::vector<std::string> got;
  for (const Problem& problem : error.problems()) got.push_back(problem.subject + ": " + problem.got);
  EXPECT_EQ(got, (std::vector<std::string>{"prompt 1: an empty prompt", "prompt 2: ids from 1 to 61",
                                           "prompt 3: 1499 tokens, and 2 new ones", "prompt 4: ids from -1 to 3"}));
  EXPECT_EQ(error.problems()[1].expected, "ids from 0 to 60");
  EXPECT_EQ(error.problems()[2].expected, "at most 1500 together");
  world.run({{many, {}}}, drawing(1), 0);
}

TEST(GenerationRefusals, ALimitBeyondAllNumbers) {
  World world;
  EXPECT_EQ(refusal(world, {{{1}, {}}}, drawing(INT64_MAX)).problems().front().subject, "prompt");
}

TEST(GenerationRefusals, AdaptersThatAreNotBound) {
  World world;
  const Error error = refusal(world, {{{1}, "n0"}, {{1}, "y"}, {{1}, "x"}});
  EXPECT_EQ(error.kind(), Kind::unknown_adapter);
  EXPECT_EQ(error.problems().size(), 2U);
}

TEST(GenerationRefusals, ABundleWithoutSlotsOrACache) {
  World world;
  world.manifest.slots.clear();
  EXPECT_EQ(refusal(world, {{{1}, "n0"}}).problems().front().subject, "adapters");
  world.manifest.generation.reset();
  const Error error = refusal(world, {{{1}, {}}});
  EXPECT_EQ(error.kind(), Kind::bundle);
  EXPECT_EQ(error.problems().front().code, code::unsupported);
}

TEST(GenerationRefusals, Settings) {
  World world;
  EXPECT_EQ(refusal(world, {{{1}, {}}}, drawing(0)).problems().front().subject, "max_new_tokens");
}

TEST(GenerationRefusals, CachesWithoutMemory) {
  World world;
  world.backend.no_memory = true;
  const Error error = refusal(world, {{{1, 2}, {}}}, drawing(8));
  EXPECT_EQ(error.kind(), Kind::request);
  EXPECT_EQ(error.problems().front().subject, "1 rows of 10 tokens");
  EXPECT_EQ(error.problems().front().got, "640 bytes of KV cache");
}

}  // namespace
}  // namespace adexport::core
