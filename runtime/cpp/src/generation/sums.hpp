// Sums in the order in which numpy adds, so that they round alike.
#pragma once

#include <algorithm>
#include <cstddef>

namespace adexport::core {

// numpy's pairwise sum of elements as numbers of type Sum.
template <class Sum, class Value>
Sum pairwise_sum(const Value* values, std::size_t count) {
  constexpr std::size_t kLanes = 8, kBlock = 128;
  if (count > kBlock) {
    const std::size_t half = count / 2 / kLanes * kLanes;
    return pairwise_sum<Sum>(values, half) + pairwise_sum<Sum>(values + half, count - half);
  }
  if (count < kLanes) {
    Sum sum = 0;
    for (std::size_t at = 0; at < count; ++at) sum += static_cast<Sum>(values[at]);
    return sum;
  }
  Sum lanes[kLanes];
  for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<Sum>(values[lane]);
  std::size_t at = kLanes;
  for (; at + kLanes <= count; at += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<Sum>(values[at + lane]);
  }
  Sum sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; at < count; ++at) sum += static_cast<Sum>(values[at]);
  return sum;
}

// values.sum(dtype=float64) of float32: by as many as numpy's buffer takes.
inline double wide_sum(const float* values, std::size_t count) {
  constexpr std::size_t kBuffer = 8192;
  double sum = 0;
  for (std::size_t at = 0; at < count; at += kBuffer) {
    sum += pairwise_sum<double>(values + at, std::min(kBuffer, count - at));
  }
  return sum;
}

}  // namespace adexport::core
