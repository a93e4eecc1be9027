// What a request wants generated: how long, how random, and where it ends.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace adexport::core {

struct Sampling {
  std::int64_t max_new_tokens = 128;
  double temperature = 0;             // 0 takes the likeliest token (greedy); else logits are divided by it
  std::optional<std::int64_t> top_k;  // sample among so many likeliest, and those as likely as the last of them
  std::optional<double> top_p;        // sample among the fewest tokens that together have this probability
  double repetition_penalty = 1;      // above 1, tokens of the prompt and the text so far become less likely
  std::optional<std::uint64_t> seed;  // none: drawn afresh
  std::optional<std::vector<std::int64_t>> eos;  // tokens that end the text; none: the bundle's

  [[nodiscard]] bool greedy() const { return temperature == 0; }
};

// Throws Kind::request, naming every value that is out of range.
void check(const Sampling& settings);

}  // namespace adexport::core
