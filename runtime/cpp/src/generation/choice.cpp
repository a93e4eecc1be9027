#include "generation/choice.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>

#include "generation/sums.hpp"

namespace adexport::core {

namespace {

// How many logits one block of `largest` and `draw` covers.
constexpr std::size_t kBlock = 256;
// How finely `nucleus` sorts logits first; beyond 50 below the best, hardly any is left.
constexpr std::size_t kBins = 2000;
constexpr float kBinsPerUnit = 40;

// The `count`-th largest of values, which are left in another order.
float ranked(std::vector<float>& values, std::size_t count) {
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(values.begin(), place, values.end(), std::greater<>());
  return *place;
}

}  // namespace

std::vector<std::size_t> largest(const std::vector<float>& scores, std::size_t count) {
  const std::size_t blocks = scores.size() / kBlock;
  std::vector<float> some;
  if (4 * count <= blocks) {
    // so many blocks reach this bound that fewer than `count` scores cannot: the rest need no sorting
    std::vector<float> tops;
    for (std::size_t block = 0; block < blocks; ++block) {
      const auto start = scores.begin() + static_cast<std::ptrdiff_t>(block * kBlock);
      tops.push_back(*std::max_element(start, start + static_cast<std::ptrdiff_t>(kBlock)));
    }
    const float bound = ranked(tops, count);
    std::copy_if(scores.begin(), scores.end(), std::back_inserter(some),
                 [&](float score) { return score >= bound; });
  } else {
    some = scores;
  }
  const float last = ranked(some, std::min(count, some.size()));
  std::vector<std::size_t> places;
  for (std::size_t at = 0; at < scores.size(); ++at) {
    if (scores[at] >= last) places.push_back(at);
  }
  return places;
}

std::vector<std::size_t> nucleus(const std::vector<float>& scores, const std::vector<float>& weights,
                                 double top_p) {
  // all below this go: together they have less than half of what may go
  const double least = std::log((1 - top_p) / (2 * static_cast<double>(scores.size())));
  std::vector<std::size_t> some;
  std::vector<float> some_weights;
  for (std::size_t at = 0; at < scores.size(); ++at) {
    if (static_cast<double>(scores[at]) < least) continue;
    some.push_back(at);
    some_weights.push_back(weights[at]);
  }
  const auto whole = pairwise_sum<float>(weights.data(), weights.size());
  const auto limit = static_cast<float>(1 - top_p);
  const double gone =
      (wide_sum(weights.data(), weights.size()) - wide_sum(some_weights.data(), some_weights.size())) /
      static_cast<double>(whole);
  // the others are sorted into bins, and only those of the bin that is cut one by one
  std::vector<std::uint16_t> bins;
  std::array<double, kBins> masses{}, sums{};
  bins.reserve(some.size());
  for (std::size_t at = 0; at < some.size(); ++at) {
    const float below = std::min(scores[some[at]] * -kBinsPerUnit, static_cast<float>(kBins - 1));
    bins.push_back(static_cast<std::uint16_t>(below));
    some_weights[at] /= whole;
    masses[bins.back()] += static_cast<double>(some_weights[at]);
  }
  // from the least likely bin up, each included
  double sum = 0;
  for (std::size_t bin = kBins; bin-- > 0;) {
    sum += masses[bin];
    sums[bin] = gone + sum;
  }
  std::size_t cut = 0;
  for (std::size_t bin = 0; bin < kBins; ++bin) {
    if (static_cast<float>(sums[bin]) > limit && masses[bin] > 0) cut = bin;
  }
  std::vector<std::size_t> order;  // of the bin, from the least likely up
  for (std::size_t at = 0; at < some.size(); ++at) {
    if (bins[at] == cut) order.push_back(at);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t left, std::size_t right) { return scores[some[left]] < scores[some[right]]; });
  std::vector<bool> stays(some.size());
  for (std::size_t at = 0; at < some.size(); ++at) stays[at] = bins[at] < cut;
  const double before = cut + 1 < kBins ? sums[cut + 1] : gone;
  double passed = 0;
  for (const std::size_t at : order) {
    passed += static_cast<double>(some_weights[at]);
    stays[at] = static_cast<float>(before + passed) > limit;
  }
  stays[order.back()] = true;  // their sum is over the limit but for rounding
  std::vector<std::size_t> places;
  for (std::size_t at = 0; at < some.size(); ++at) {
    if (stays[at]) places.push_back(some[at]);
  }
  return places;
}

std::size_t draw(const std::vector<float>& weights, double uniform) {
  std::vector<double> ends;
  double sum = 0;
  for (std::size_t start = 0; start < weights.size(); start += kBlock) {
    const std::size_t count = std::min(kBlock, weights.size() - start);
    sum += static_cast<double>(weights[start]) + pairwise_sum<double>(weights.data() + start + 1, count - 1);
    ends.push_back(sum);
  }
  const double wanted = uniform * ends.back();  // rounds to less than the whole
  const auto block = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), wanted) - ends.begin());
  const double inside = wanted - (block > 0 ? ends[block - 1] : 0.0);
  const std::size_t start = block * kBlock, end = std::min(start + kBlock, weights.size());
  double passed = 0;
  std::size_t last = start;  // rounding may carry it past the block's end: then its last that has any weight
  for (std::size_t at = start; at < end; ++at) {
    passed += static_cast<double>(weights[at]);
    if (weights[at] != 0) last = at;
    if (passed > inside) return at;
  }
  return last;
}

}  // namespace adexport::core
