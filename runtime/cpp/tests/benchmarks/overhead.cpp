// What a call costs over ONNX Runtime's own: the same graph with the same inputs, by an IoBinding in which all
// stays bound, by the engine, and by the public header.
//
//   adexport_bench_overhead deep.bundle ADAPTER [ROUNDS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "adexport/adexport.hpp"
#include "bound.hpp"
#include "engine.hpp"
#include "ort/session.hpp"
#include "ort/values.hpp"

namespace {

using namespace adexport;

constexpr std::int64_t batch = 2, seq = 4;

// Ways to do the same, in another order each round: each finds the caches as another left them.
class Rounds {
 public:
  void add(const char* name, std::function<void()> work) { ways_.push_back({name, std::move(work), {}}); }

  void time(int rounds) {
    std::minstd_rand random(1);
    std::vector<std::size_t> order(ways_.size());
    for (std::size_t at = 0; at < order.size(); ++at) order[at] = at;
    for (int round = 0; round < rounds; ++round) {
      std::shuffle(order.begin(), order.end(), random);
      for (const auto at : order) {
        const auto start = std::chrono::steady_clock::now();
        ways_[at].work();
        const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
        ways_[at].times.push_back(took.count());
      }
    }
  }

  // In microseconds, and what they are over those of the first.
  void print() {
    std::vector<double> first;
    for (auto& way : ways_) {
      std::sort(way.times.begin(), way.times.end());
      std::printf("%-22s", way.name);
      for (std::size_t at = 0; at < 2; ++at) {
        const double value = way.times[way.times.size() * (at == 0 ? 1 : 5) / 10];
        if (first.size() <= at) first.push_back(value);
        std::printf("  %s %8.1f (%+.1f)", at == 0 ? "tenth" : "median", value, value - first[at]);
      }
      std::printf("\n");
    }
  }

 private:
  struct Way {
    const char* name;
    std::function<void()> work;
    std::vector<double> times;
  };
  std::vector<Way> ways_;
};

// The graph with everything bound once.
class ByHand {
 public:
  ByHand(const core::OrtLibrary& ort, const core::Bundle& bundle, const std::string& adapter,
         const std::vector<std::int64_t>& ids)
      : manifest_(bundle.manifest),
        opened_(core::open_session(ort, bundle.model_path(), manifest_, settings())),
        tensors_(ort),
        bank_(manifest_.slot_inputs, manifest_.dtype),
        binding_(ort, opened_.session.get()),
        ids_(ids),
        ones_(ids.size(), 1),
        zeros_(ids.size(), 0) {
    bank_.put(adapter, core::load_bound(bundle.adapter_path(adapter), manifest_));
    lease_ = bank_.lease({adapter});
    row_ = lease_.held(adapter).row;
    for (std::size_t at = 0; at < manifest_.slot_inputs.size(); ++at) {
      const auto& array = lease_.arrays()->arrays[at];
      bind(manifest_.slot_inputs[at].name, array.data.get(), array.element, array.shape);
    }
    for (const auto& input : manifest_.inputs) {
      const auto& values = input.name == "input_ids" ? ids_ : input.fill.value_or(0) == 1 ? ones_ : zeros_;
      bind(input.name, values.data(), core::Element::int64, {batch, seq});
    }
    bind(*manifest_.adapter_ids, &row_, core::Element::int64, {1});
    for (const auto& output : manifest_.outputs) binding_.output(output.name, tensors_.memory());
  }

  void run() { binding_.run(opened_.session.get(), false); }
  // As anybody must whose batches change their shape: a kept output keeps its own.
  void run_anew() {
    for (const auto& output : manifest_.outputs) binding_.output(output.name, tensors_.memory());
    run();
  }
  std::size_t slots() const { return manifest_.slot_inputs.size(); }

 private:
  static core::SessionSettings settings() {
    core::SessionSettings wanted;
    wanted.provider = core::provider_named("cpu", {});
    wanted.threads = 1;
    return wanted;
  }

  void bind(const std::string& name, const void* data, core::Element element,
            const std::vector<std::int64_t>& shape) {
    kept_.push_back(tensors_.over(data, element, shape));
    binding_.input(name, kept_.back().get());
  }

  const core::Manifest& manifest_;
  core::OrtOpened opened_;
  core::OrtTensors tensors_;
  core::Bank bank_;
  core::Lease lease_;
  core::OrtBinding binding_;
  std::vector<core::OrtTensor> kept_;
  std::int64_t row_ = 0;
  std::vector<std::int64_t> ids_, ones_, zeros_;
};

int measure(const std::string& path, const std::string& adapter, int rounds) {
  const auto& ort = core::OrtLibrary::load(std::nullopt);
  const auto bundle = core::Bundle::open(path);
  const std::vector<std::int64_t> ids(static_cast<std::size_t>(batch * seq), 5);
  ByHand by_hand(ort, bundle, adapter, ids);
  ByHand other(ort, bundle, adapter, ids);
  core::EngineSettings settings;
  settings.threads = 1;
  settings.kernels = "";
  const auto engine = core::Engine::open(path, settings);
  Options options;
  options.threads = 1;
  options.kernels = "";
  auto offered = Engine::open(path, options);
  const std::vector<core::Feed> feeds{{"input_ids", core::Element::int64, {batch, seq}, ids.data()}};

  Rounds timed;
  timed.add("IoBinding by hand", [&] { by_hand.run_anew(); });
  timed.add("another session's", [&] { other.run_anew(); });
  timed.add("core::Engine::run", [&] { engine->run(feeds, {adapter}); });
  timed.add("adexport::Engine::run", [&] { offered.run({{"input_ids", ids, {batch, seq}}}, {adapter}); });
  timed.time(rounds);
  std::printf("%s, ONNX Runtime %s, %zu slot inputs, %d rounds, us\n", path.c_str(), ort.version().c_str(),
              by_hand.slots(), rounds);
  timed.print();
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s BUNDLE ADAPTER [ROUNDS]\n", arguments[0]);
    return 2;
  }
  try {
    return measure(arguments[1], arguments[2], count > 3 ? std::atoi(arguments[3]) : 2000);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
