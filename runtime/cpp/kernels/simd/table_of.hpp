// The functions of one set of instructions, which its vector V stands for.
#pragma once

#include "elementwise.hpp"
#include "low_rank.hpp"

namespace adexport::kernels {

template <class V, class T, class TB>
constexpr Kernels kernels_of() {
  return {&LowRankOf<V, T, TB>::run, &elementwise<V, T, TB, true>, &elementwise<V, T, TB, false>};
}

// In the order of Pair.
template <class V>
constexpr Table table_of(const char* name) {
  return {name,
          {kernels_of<V, float, float>(), kernels_of<V, Half, Half>(), kernels_of<V, BFloat, BFloat>(),
           kernels_of<V, float, Half>(), kernels_of<V, float, BFloat>()}};
}

}  // namespace adexport::kernels
