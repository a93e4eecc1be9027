// x * vector and x + vector for tokens of one adapter, over vectors V.
#pragma once

#include "../table.hpp"

namespace adexport::kernels {

template <class V, class T, class TB, bool scales>
void elementwise(const Elementwise& work) {
  constexpr std::size_t width = V::width;
  const auto* vector = static_cast<const TB*>(work.vector);
  const auto apply = [](typename V::Register a, typename V::Register b) __attribute__((always_inline)) {
    if constexpr (scales) {
      return V::mul(a, b);
    } else {
      return V::add(a, b);
    }
  };
  for (std::size_t token = 0; token < work.tokens; ++token) {
    const T* x = static_cast<const T*>(work.x) + token * work.features;
    T* out = static_cast<T*>(work.out) + token * work.features;
    std::size_t i = 0;
    for (; work.features - i >= width; i += width) V::store(out + i, apply(V::load(x + i), V::load(vector + i)));
    const std::size_t left = work.features - i;
    if (left > 0) V::store(out + i, apply(V::load(x + i, left), V::load(vector + i, left)), left);
  }
}

}  // namespace adexport::kernels
