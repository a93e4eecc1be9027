// From the logits of one row to its next token, as adexport_runtime.generation.sampler picks it: the steps,
// their order and their float32 arithmetic are the same, so the same seed draws the same tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "generation/random.hpp"
#include "generation/settings.hpp"

namespace adexport::core {

// Picks the tokens of one request. It has random numbers of its own: no other row plays a part.
class Sampler {
 public:
  // Settings that are not checked here: see check().
  Sampler(Sampling settings, const std::vector<std::int64_t>& prompt);

  // The next token's id, from the logits of the whole vocabulary; the greedy choice among equals is the first.
  // Throws Kind::request where they hold NaN or plus infinity, or nothing but minus infinity.
  std::int64_t next(const float* logits, std::size_t count);

 private:
  [[nodiscard]] bool penalizes() const { return settings_.repetition_penalty != 1; }
  std::size_t likeliest(const float* logits, std::size_t count);
  std::size_t drawn(const float* logits, std::size_t count);
  void penalize(const float* logits, std::size_t count);

  Sampling settings_;
  Random random_;
  std::set<std::int64_t> seen_;
  std::vector<float> scores_;  // kept: fresh memory for every token takes longer than its use
};

}  // namespace adexport::core
