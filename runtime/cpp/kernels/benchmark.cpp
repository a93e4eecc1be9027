// Times the kernels on one thread against what the CPU can do: `adexport_kernel_benchmark [avx512|avx2|portable]`.
//
// Each call takes the next of several sets of banks, as the layers of a model do; `banks` tells their size.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "call.hpp"
#include "isa.hpp"

#if defined(ADEXPORT_KERNELS_X86)
#include <immintrin.h>
#endif

namespace {

using namespace adexport::kernels;

// Seconds that this thread ran: what else the machine does is not counted.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

class OneThread final : public Pool {
 public:
  void run(std::size_t total, std::size_t, Task task, void* data) const override {
    for (std::size_t i = 0; i < total; ++i) task(data, i);
  }
};

// Floating-point operations a second of ten sums side by side that stay in registers.
#if defined(ADEXPORT_KERNELS_X86)
__attribute__((target("avx512f"))) float sums_512(std::size_t rounds) {
  __m512 sums[10];
  for (std::size_t i = 0; i < 10; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 factor = _mm512_set1_ps(0.5F);
  for (std::size_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
    for (auto& sum : sums) sum = _mm512_fmadd_ps(sum, factor, factor);
  }
  __m512 total = sums[0];
  for (const auto& sum : sums) total = _mm512_add_ps(total, sum);
  return _mm512_cvtss_f32(total);
}

__attribute__((target("avx2,fma"))) float sums_256(std::size_t rounds) {
  __m256 sums[10];
  for (std::size_t i = 0; i < 10; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 factor = _mm256_set1_ps(0.5F);
  for (std::size_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
    for (auto& sum : sums) sum = _mm256_fmadd_ps(sum, factor, factor);
  }
  __m256 total = sums[0];
  for (const auto& sum : sums) total = _mm256_add_ps(total, sum);
  return _mm256_cvtss_f32(total);
}
#endif

double peak_gflops(const Table& table) {
  constexpr std::size_t rounds = 100'000;
  std::vector<double> rates;
  for (int round = 0; round < 200; ++round) {
    double width = 0;
    volatile float kept = 0;
    const double start = now();
#if defined(ADEXPORT_KERNELS_X86)
    if (table.name == std::string("avx512")) {
      kept = sums_512(rounds);
      width = 16;
    } else if (table.name == std::string("avx2")) {
      kept = sums_256(rounds);
      width = 8;
    }
#endif
    static_cast<void>(table);
    static_cast<void>(kept);
    rates.push_back(width * 20 * rounds / (now() - start) / 1e9);
  }
  std::nth_element(rates.begin(), rates.begin() + 180, rates.end());
  return rates[180];
}

double read_gigabytes() {
  const std::vector<double> memory(16'000'000, 1.0);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double start = now();
    double sums[8] = {};
    for (std::size_t i = 0; i < memory.size(); i += 8) {
      for (std::size_t k = 0; k < 8; ++k) sums[k] += memory[i + k];
    }
    volatile double kept = sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
    static_cast<void>(kept);
    best = std::max(best, static_cast<double>(memory.size()) * 8 / (now() - start) / 1e9);
  }
  return best;
}

struct Case {
  const char* name;
  std::size_t batch, tokens, in, out, rank;
  bool bottleneck = false;
  std::size_t ids = 0;  // 0: one for each row
  std::size_t sets = 16;
  Pair pair = Pair::float_float;
};

View view(const void* data, std::initializer_list<std::size_t> shape) {
  View made;
  made.data = data;
  made.there = true;
  for (const std::size_t size : shape) made.shape[made.axes++] = static_cast<std::int64_t>(size);
  return made;
}

// Values as small as those of a model, in either size of element.
std::vector<char> values(std::size_t count, std::size_t bytes, std::mt19937& random) {
  std::vector<char> made(count * bytes);
  std::uniform_real_distribution<float> any(-0.05F, 0.05F);
  for (std::size_t i = 0; i < count; ++i) {
    const float value = any(random);
    const std::uint16_t half = 0x2000U | static_cast<std::uint16_t>(random() & 0x3ffU);  // small as both
    if (bytes == 4) {
      std::memcpy(&made[i * 4], &value, 4);
    } else {
      std::memcpy(&made[i * 2], &half, 2);
    }
  }
  return made;
}

void time_case(const Case& given, const Table& table, double peak, double memory) {
  std::mt19937 random(0);
  const std::size_t rows = given.batch + 1;
  const std::size_t flow = given.pair == Pair::half_half || given.pair == Pair::bfloat_bfloat ? 2 : 4;
  const std::size_t bank = given.pair == Pair::float_float ? 4 : 2;
  const std::size_t tokens = given.batch * given.tokens;
  struct Set {
    std::vector<char> down, up, down_bias, up_bias;
  };
  std::vector<Set> sets(given.sets);
  for (Set& set : sets) {
    set.down = values(rows * given.in * given.rank, bank, random);
    set.up = values(rows * given.rank * given.out, bank, random);
    set.down_bias = values(rows * given.rank, bank, random);
    set.up_bias = values(rows * given.out, bank, random);
  }
  auto x = values(tokens * given.in, flow, random);
  auto y = values(tokens * given.out, flow, random);
  std::vector<std::int64_t> ids(given.ids == 0 ? given.batch : given.ids);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i + 1);
  const std::vector<Activation> activations{Activation::gelu};
  const OneThread pool;

  const auto call = [&](const Set& set) {
    LowRankCall made{};
    made.where = given.name;
    made.pair = given.pair;
    made.y = view(y.data(), {given.batch, given.tokens, given.out});
    made.x = view(x.data(), {given.batch, given.tokens, given.in});
    made.down = view(set.down.data(), {rows, given.in, given.rank});
    made.up = view(set.up.data(), {rows, given.rank, given.out});
    if (given.bottleneck) {
      made.down_bias = view(set.down_bias.data(), {rows, given.rank});
      made.up_bias = view(set.up_bias.data(), {rows, given.out});
      made.activations = &activations;
    }
    made.ids = view(ids.data(), {ids.size()});
    made.run(made.checked(), y.data(), table, pool);
  };
  for (const Set& set : sets) call(set);
  std::vector<double> times;
  for (double began = now(); now() - began < 0.3 || times.size() < 5;) {
    const double start = now();
    for (const Set& set : sets) call(set);
    times.push_back((now() - start) / static_cast<double>(sets.size()));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 10), times.end());
  const double seconds = times[times.size() / 10];
  const auto matrix = static_cast<double>((given.in + given.out) * given.rank);
  const double flops = 2 * static_cast<double>(tokens) * matrix;
  const double banks = static_cast<double>(ids.size()) * matrix * static_cast<double>(bank);
  const auto flows = static_cast<double>(tokens * (given.in + 2 * given.out) * flow);
  const double bound = std::max(flops / peak / 1e9, banks / memory / 1e9);
  std::printf("%-44s %9.2f us %8.1f GFLOP/s %7.1f GB/s banks %7.1f GB/s all %5.0f %% of %s\n", given.name,
              seconds * 1e6, flops / seconds / 1e9, banks / seconds / 1e9, (banks + flows) / seconds / 1e9,
              100 * bound / seconds, flops / peak > banks / memory ? "FLOPs" : "memory");
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) setenv("ADEXPORT_KERNELS_ISA", arguments[1], 1);
  std::string refusal;
  const Table* table = chosen_table(refusal);
  if (table == nullptr) {
    (void)std::fprintf(stderr, "%s\n", refusal.c_str());
    return 2;
  }
  const double peak = std::max(1.0, peak_gflops(*table));
  const double memory = read_gigabytes();
  std::printf("%s: %.0f GFLOP/s of multiply-adds, %.1f GB/s read from memory\n", table->name, peak, memory);
  const Case cases[]{
      {"a 8x128 384->384 r16", 8, 128, 384, 384, 16},
      {"a 8x128 384->1536 r16", 8, 128, 384, 1536, 16},
      {"a 8x128 1536->384 r16", 8, 128, 1536, 384, 16},
      {"a 8x128 384->384 r8", 8, 128, 384, 384, 8},
      {"a 8x128 384->384 r64", 8, 128, 384, 384, 64},
      {"a 8x128 384->384 r16, half banks", 8, 128, 384, 384, 16, false, 0, 16, Pair::float_half},
      {"a 8x128 384->384 r16, half", 8, 128, 384, 384, 16, false, 0, 16, Pair::half_half},
      {"a 8x128 384->384 r16, bfloat", 8, 128, 384, 384, 16, false, 0, 16, Pair::bfloat_bfloat},
      {"b 8x16 384->384 r16", 8, 16, 384, 384, 16},
      {"b 32x16 384->384 r16", 32, 16, 384, 384, 16},
      {"b 1x16 384->384 r16", 1, 16, 384, 384, 16},
      {"b 1x16 384->1536 r16", 1, 16, 384, 1536, 16},
      {"b 1x16 1536->384 r16", 1, 16, 1536, 384, 16},
      {"c 8x1 576->576 r8, banks in L3", 8, 1, 576, 576, 8, false, 0, 16},
      {"c 8x1 576->576 r16, banks in L3", 8, 1, 576, 576, 16, false, 0, 16},
      {"c 8x1 576->576 r16, banks in memory", 8, 1, 576, 576, 16, false, 0, 400},
      {"c 8x1 576->1536 r16, banks in memory", 8, 1, 576, 1536, 16, false, 0, 250},
      {"c 8x1 1536->576 r16, banks in memory", 8, 1, 1536, 576, 16, false, 0, 250},
      {"c 8x1 1536->576 r8, banks in memory", 8, 1, 1536, 576, 8, false, 0, 400},
      {"c 8x1 576->1536 r16, half banks in memory", 8, 1, 576, 1536, 16, false, 0, 400, Pair::float_half},
      {"d 32x1 576->576 r16, one adapter", 32, 1, 576, 576, 16, false, 1, 100},
      {"d 64x16 384->384 r16, one adapter", 64, 16, 384, 384, 16, false, 1},
      {"e 8x128 384->384 w48 gelu", 8, 128, 384, 384, 48, true},
      {"e 8x128 384->384 w16 gelu", 8, 128, 384, 384, 16, true},
      {"e 8x128 384->384 w64 gelu", 8, 128, 384, 384, 64, true},
      {"e 8x16 384->384 w48 gelu", 8, 16, 384, 384, 48, true},
  };
  for (const Case& one : cases) time_case(one, *table, peak, memory);
  return 0;
}
