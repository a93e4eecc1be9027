// One text that is being generated: what was asked for, and how far it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "adexport/adexport.h"
#include "errors.hpp"
#include "generation/sampler.hpp"

namespace adexport::core {

// Why a text ended: its own end, its limit, the caller, or a failure.
enum class Reason {
  eos = ADEXPORT_EOS,
  length = ADEXPORT_LENGTH,
  cancelled = ADEXPORT_CANCELLED,
  failed = ADEXPORT_FAILED,
};

// A text that has ended: its new tokens, the one that ended it included; after an error those before it.
struct Generated {
  std::vector<std::int64_t> ids;
  Reason reason = Reason::failed;
  std::optional<Error> error;  // of a text that failed
};

// A text on its way. `on_token` is told every new token, and returns whether the caller wants no more.
class Request {
 public:
  using OnToken = std::function<bool(std::int64_t)>;

  std::vector<std::int64_t> ids;
  std::optional<std::string> adapter;
  std::int64_t limit = 0;
  std::vector<std::int64_t> eos_ids;
  Sampler sampler;
  OnToken on_token;
  std::int64_t past = 0;  // tokens in the cache

  // Whether the whole prompt is in the cache, so that one token follows another.
  [[nodiscard]] bool prefilled() const { return past >= static_cast<std::int64_t>(ids.size()); }
  // The token to run next, once the prompt is in the cache.
  [[nodiscard]] std::int64_t last() const { return result_.ids.back(); }
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] const Generated& result() const { return result_; }

  Request(std::vector<std::int64_t> prompt, std::optional<std::string> name, const Sampling& settings,
          std::vector<std::int64_t> ends, OnToken told);

  // Add a token, and end the text if it was the last one or the caller wants no more.
  void take(std::int64_t token);
  // End the text; only the first end counts.
  void end(Reason reason, std::optional<Error> error = std::nullopt);

 private:
  Generated result_;
  bool ended_ = false;
};

}  // namespace adexport::core
