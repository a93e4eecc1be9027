#include "generation/settings.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "errors.hpp"
#include "json.hpp"

namespace adexport::core {

namespace {

// Outside of these float32 logits could overflow, and nobody would see a difference.
constexpr double kTemperatures[] = {1e-6, 1e6};
constexpr double kPenalties[] = {0.01, 100.0};

std::string shown(double value) {
  return json::repr(json::Value{value});
}

std::string shown(const std::vector<std::int64_t>& ids) {
  json::Array values;
  for (const std::int64_t id : ids) values.push_back(json::Value{id});
  return json::repr(json::Value{std::move(values)});
}

std::string range(const double (&ends)[2]) {
  return shown(ends[0]) + " to " + shown(ends[1]);
}

bool within(double value, const double (&ends)[2]) {
  return value >= ends[0] && value <= ends[1];
}

}  // namespace

void check(const Sampling& settings) {
  std::vector<Problem> problems;
  const auto keep = [&](bool fits, const char* name, std::string got, std::string expected, const char* mend) {
    if (!fits) problems.push_back({code::bad_input, name, std::move(got), std::move(expected), "", mend});
  };
  keep(settings.max_new_tokens >= 1, "max_new_tokens", std::to_string(settings.max_new_tokens),
       "a whole number, at least 1", "");
  keep(settings.greedy() || within(settings.temperature, kTemperatures), "temperature", shown(settings.temperature),
       "0, or " + range(kTemperatures), "0 takes the likeliest token");
  if (settings.top_k) {
    keep(*settings.top_k >= 1, "top_k", std::to_string(*settings.top_k), "a whole number, at least 1, or none",
         "none keeps all tokens");
  }
  if (settings.top_p) {
    keep(*settings.top_p > 0 && *settings.top_p <= 1, "top_p", shown(*settings.top_p),
         "above 0, at most 1, or none", "none keeps all tokens");
  }
  keep(within(settings.repetition_penalty, kPenalties), "repetition_penalty", shown(settings.repetition_penalty),
       range(kPenalties), "1 is no penalty");
  if (settings.eos) {
    const bool fits = std::all_of(settings.eos->begin(), settings.eos->end(), [](auto id) { return id >= 0; });
    keep(fits, "eos", shown(*settings.eos), "token ids, or none", "");
  }
  if (!problems.empty()) {
    throw Error(Kind::request, "the settings of the generation do not fit", std::move(problems));
  }
}

}  // namespace adexport::core
