// Checking what a call brings before any of it reaches the graph. Errors are of Kind::request.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"

namespace adexport::core {

// A name, or none (the base), for each row.
using Adapters = std::vector<std::optional<std::string>>;

// What the graph gets: the caller's arrays as they are where their type fits, copies elsewhere.
struct Inputs {
  std::vector<Feed> feeds;  // all that the manifest declares, in its order
  std::vector<std::shared_ptr<void>> copies;
  std::int64_t batch = 0;

  [[nodiscard]] const Feed& named(const std::string& name) const;
};

// float32, int64 or int32 by name. Names every input that is unknown, given twice, absent, of a wrong shape
// or type, or holds values out of range. Nothing is ever cut, padded or wrapped.
Inputs check_inputs(const std::vector<Feed>& given, const Manifest& manifest);

// One for each row, from one for each, one for all, or none (the base).
Adapters check_adapters(const Adapters& given, std::int64_t batch, const Manifest& manifest);

// The tokens of each row, from a padding mask [batch, seq]; refused unless padding is on the right.
std::vector<std::int64_t> prompt_lengths(const Feed& mask);

// A size of a batch, at least 1.
std::int64_t check_size(const std::string& name, std::int64_t value);

}  // namespace adexport::core
