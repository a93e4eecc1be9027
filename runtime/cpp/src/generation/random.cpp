#include "generation/random.hpp"

#include <array>
#include <cstddef>
#include <random>
#include <vector>

namespace adexport::core {

namespace {

using Words = std::vector<std::uint32_t>;

constexpr std::size_t kPool = 4;

// A multiplicative hash whose constants change from call to call.
class Hash {
 public:
  Hash(std::uint32_t start, std::uint32_t factor) : constant_(start), factor_(factor) {}

  std::uint32_t operator()(std::uint32_t value) {
    value ^= constant_;
    constant_ *= factor_;
    value *= constant_;
    return value ^ (value >> 16);
  }

 private:
  std::uint32_t constant_, factor_;
};

std::uint32_t mix(std::uint32_t left, std::uint32_t right) {
  const std::uint32_t mixed = 0xca01f9ddU * left - 0x4973f715U * right;
  return mixed ^ (mixed >> 16);
}

// Eight words that all depend on every bit of the entropy.
std::array<std::uint32_t, 2 * kPool> spread(const Words& entropy) {
  std::array<std::uint32_t, kPool> pool{};
  Hash hash(0x43b0d7e5U, 0x931e8875U);
  for (std::size_t at = 0; at < kPool; ++at) pool[at] = hash(at < entropy.size() ? entropy[at] : 0);
  for (std::size_t source = 0; source < kPool; ++source) {
    for (std::size_t target = 0; target < kPool; ++target) {
      if (source != target) pool[target] = mix(pool[target], hash(pool[source]));
    }
  }
  std::array<std::uint32_t, 2 * kPool> made{};
  Hash last(0x8b51f9ddU, 0x58f38dedU);
  for (std::size_t at = 0; at < made.size(); ++at) made[at] = last(pool[at % kPool]);
  return made;
}

}  // namespace

Random::Random(std::optional<std::uint64_t> seed) {
  Words entropy;
  if (seed) {
    entropy = {static_cast<std::uint32_t>(*seed), static_cast<std::uint32_t>(*seed >> 32)};
  } else {
    std::random_device device;
    for (std::size_t at = 0; at < kPool; ++at) entropy.push_back(device());
  }
  const auto words = spread(entropy);
  const auto pair = [&](std::size_t at) { return Wide{words[at]} | (Wide{words[at + 1]} << 32); };
  increment_ = (((pair(4) << 64) | pair(6)) << 1) | 1;
  state_ = 0;
  bits();
  state_ += (pair(0) << 64) | pair(2);
  bits();
}

std::uint64_t Random::bits() {
  constexpr Wide kFactor = (Wide{2549297995355413924U} << 64) | 4865540595714422341U;
  state_ = state_ * kFactor + increment_;
  const auto value = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
  const auto turn = static_cast<unsigned>(state_ >> 122);
  return (value >> turn) | (value << ((64 - turn) & 63));
}

double Random::next() {
  return static_cast<double>(bits() >> 11) * 0x1p-53;
}

}  // namespace adexport::core
