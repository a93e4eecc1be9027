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
