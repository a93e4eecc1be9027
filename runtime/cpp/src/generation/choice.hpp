// Which of many tokens stay, and which of them is drawn. Places are ascending.
#pragma once

#include <cstddef>
#include <vector>

namespace adexport::core {

// The places of the `count` largest and of all that equal the last of them.
std::vector<std::size_t> largest(const std::vector<float>& scores, std::size_t count);

// The places of the fewest likeliest that together have the probability `top_p`. `scores` are the logarithms
// of `weights`, the largest 0. From the least likely up, one goes while the sum of those gone, itself
// included, is at most 1 - top_p; the likeliest stays. Of equals the first goes first.
std::vector<std::size_t> nucleus(const std::vector<float>& scores, const std::vector<float>& weights, double top_p);

// The place where the share `uniform`, from 0 to below 1, of all weights falls; none of weight 0.
std::size_t draw(const std::vector<float>& weights, double uniform);

}  // namespace adexport::core
