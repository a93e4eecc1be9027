#include "generation/settings.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

// Outside of these float32 logits could overflow, and nobody would see a difference.
constexpr double kTemperatures[] = {1e-6, 1e6};
constexpr double kPenalties[] = {0.01, 100.0};

// As Python's repr() has it.
std::string shown(double value) {
  char text[64];
  const auto written = [&](std::chars_format format) {
    return std::string(text, std::to_chars(text, text + sizeof(text), value, format).ptr);
  };
  if (!std::isfinite(value)) return written(std::chars_format::general);
  const double size = std::abs(value);
  if (size != 0 && (size < 1e-4 || size >= 1e16)) return written(std::chars_format::scientific);
  const std::string plain = written(std::chars_format::fixed);
  return plain.find('.') == std::string::npos ? plain + ".0" : plain;
}

std::string shown(const std::vector<std::int64_t>& ids) {
  std::string made;
  for (const std::int64_t id : ids) made += (made.empty() ? "[" : ", ") + std::to_string(id);
  return made.substr(0, 80) + "]";
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
