#include "generation/request.hpp"

#include <algorithm>
#include <utility>

namespace adexport::core {

Request::Request(std::vector<std::int64_t> prompt, std::optional<std::string> name, const Sampling& settings,
                 std::vector<std::int64_t> ends, OnToken told)
    : ids(std::move(prompt)),
      adapter(std::move(name)),
      limit(settings.max_new_tokens),
      eos_ids(std::move(ends)),
      sampler(settings, ids),
      on_token(std::move(told)) {}

void Request::take(std::int64_t token) {
  result_.ids.push_back(token);
  if (on_token && on_token(token)) {
    end(Reason::cancelled);
  } else if (std::find(eos_ids.begin(), eos_ids.end(), token) != eos_ids.end()) {
    end(Reason::eos);
  } else if (static_cast<std::int64_t>(result_.ids.size()) >= limit) {
    end(Reason::length);
  }
}

void Request::end(Reason reason, std::optional<Error> error) {
  if (ended_) return;
  ended_ = true;
  result_.reason = reason;
  result_.error = std::move(error);
}

}  // namespace adexport::core
