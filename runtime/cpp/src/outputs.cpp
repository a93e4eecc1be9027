#include "outputs.hpp"

#include <algorithm>
#include <limits>

namespace adexport::core {

namespace {

// Copy the first `kept` of every `width` values.
Floats narrowed(const Floats& values, std::size_t width, std::size_t kept) {
  std::vector<float> cut;
  cut.reserve(values.size() / width * kept);
  for (const auto* from = values.begin(); from != values.end(); from += width)
    cut.insert(cut.end(), from, from + kept);
  return {std::move(cut)};
}

}  // namespace

void cut_logits(Array& logits, const std::vector<Labels>& labels) {
  std::size_t most = 0;
  for (const auto& names : labels) most = std::max(most, names.size());
  const auto width = static_cast<std::size_t>(logits.shape.back());
  if (most < width) {
    logits.values = narrowed(logits.values, width, most);
    logits.shape.back() = static_cast<std::int64_t>(most);
  }
  const auto kept = std::min(most, width);
  const auto row = labels.empty() ? 0 : logits.values.size() / labels.size();
  for (std::size_t index = 0; index < labels.size(); ++index) {
    const auto own = std::min(labels[index].size(), kept);
    if (own == kept) continue;
    auto* const end = logits.values.data() + (index + 1) * row;
    for (auto* place = logits.values.data() + index * row; place != end; place += kept) {
      std::fill(place + own, place + kept, -std::numeric_limits<float>::infinity());
    }
  }
}

}  // namespace adexport::core
