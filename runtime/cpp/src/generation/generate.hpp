// Continue prompts, all in one batch, with an adapter for each: Engine.generate of the Python runtime, on ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "bank.hpp"
#include "generation/request.hpp"
#include "generation/settings.hpp"
#include "manifest.hpp"

namespace adexport::core {

struct Prompt {
  std::vector<std::int64_t> ids;
  std::optional<std::string> adapter;  // none: the base
};

// Told a row's number and its new token; returns whether the row ends as cancelled. What it throws comes through.
using OnToken = std::function<bool(std::size_t, std::int64_t)>;

// At most `max_batch` rows (0: 8) decode at once; others join as rows come free. Row i takes the seed + i. A row
// that fails while it runs has its error in its own result. `on_token` may be empty.
//
// Throws before anything runs: Kind::bundle where the bundle does not generate; Kind::request for settings and
// prompts that do not fit, naming all; Kind::unknown_adapter; and where the caches have no memory.
std::vector<Generated> generate(Backend& backend, const Manifest& manifest, Bank& bank,
                                const std::vector<Prompt>& prompts, const Sampling& sampling,
                                std::size_t max_batch = 0, const OnToken& on_token = {});

}  // namespace adexport::core
