// Many threads run while others bind and unbind: every run is one that the adapters of some moment give.
#include <atomic>
#include <thread>

#include "cases.hpp"

namespace adexport::testing {
namespace {

class Threads : public WithBundles {};

TEST_F(Threads, RunWhileOneBindsAndUnbinds) {
  constexpr int runners = 8, rounds = 40;
  auto engine = open_engine("encoder");
  const auto expected = case_named("encoder.mixed");
  const auto adapters = std::filesystem::path(bundle_path("encoder")) / "adapters";
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0}, refused{0};
  std::vector<std::thread> threads;
  for (int runner = 0; runner < runners; ++runner) {
    threads.emplace_back([&, runner] {
      for (int round = 0; round < rounds; ++round) {
        // what is never rebound must never change
        if (difference(engine.run(expected.inputs(), expected.adapters), expected) > 1e-5) ++wrong;
        if (runner % 2 == 0) continue;
        const auto error = refusal([&] { engine.run(expected.inputs(), {"guest"}); });
        if (error) ++(error->kind() == Kind::unknown_adapter ? refused : wrong);
      }
    });
  }
  std::thread binder([&] {
    for (int turn = 0; !done; ++turn) {
      const std::string other = turn % 2 == 0 ? "c" : "a";
      engine.bind("guest", (adapters / (other + ".safetensors")).string());
      for (int more = 0; more < turn % 5; ++more) {
        engine.bind("guest" + std::to_string(more), (adapters / "b.safetensors").string());
      }
      for (const auto& name : engine.adapters()) {
        if (name.rfind("guest", 0) == 0) engine.unbind(name);
      }
    }
  });
  for (auto& thread : threads) thread.join();
  done = true;
  binder.join();
  EXPECT_EQ(wrong, 0);
}

// Two rows for three adapters, which are bound anew all the time: everybody comes to a row.
TEST_F(Threads, RunAndGenerateWithFewRowsWhileOneRebinds) {
  constexpr int rounds = 15;
  auto options = test_options();
  options.rows = 2;
  auto engine = Engine::open(bundle_path("decoder"), options);
  auto quiet = open_engine("decoder");
  const auto expected = case_named("decoder.one");
  const std::vector<Prompt> prompts{{{5, 6, 7}, "a"}, {{8, 9}, "b"}, {{3}, "c"}, {{4, 4}, std::nullopt}};
  Sampling sampling;
  sampling.max_new_tokens = 5;
  const auto wanted = quiet.generate(prompts, sampling);
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < rounds; ++round) {
        if (thread % 2 == 0) {
          if (difference(engine.run(expected.inputs(), expected.adapters), expected) > 1e-5) ++wrong;
          continue;
        }
        const auto texts = engine.generate(prompts, sampling, 2);
        for (std::size_t row = 0; row < texts.size(); ++row) {
          if (texts[row].ids != wanted[row].ids) ++wrong;
        }
      }
    });
  }
  std::thread binder([&] {
    for (int turn = 0; !done; ++turn) engine.bind(turn % 2 == 0 ? "a" : "b");  // what they were
  });
  for (auto& thread : threads) thread.join();
  done = true;
  binder.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Threads, OpenAndCloseEngines) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  const auto expected = case_named("encoder.one");
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      auto engine = open_engine("encoder");
      if (difference(engine.run(expected.inputs(), expected.adapters), expected) > 1e-6) ++wrong;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace adexport::testing
