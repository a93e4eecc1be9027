// Products that are kept in registers until they are done.
#pragma once

#include <cstddef>

namespace adexport::kernels {

template <std::size_t n>
struct Size {
  static constexpr std::size_t value = n;
};

// Calls task(Size<n>, row) for tiles of `most` rows, then for smaller ones of what is left.
template <std::size_t most, class Task>
inline __attribute__((always_inline)) void by_rows(std::size_t rows, const Task& task) {
  std::size_t row = 0;
  for (; rows - row >= most; row += most) task(Size<most>{}, row);
  if constexpr (most > 8) {
    if (rows - row >= 8) task(Size<8>{}, row), row += 8;
  }
  if constexpr (most > 4) {
    if (rows - row >= 4) task(Size<4>{}, row), row += 4;
  }
  if constexpr (most > 2) {
    if (rows - row >= 2) task(Size<2>{}, row), row += 2;
  }
  if (rows - row >= 1) task(Size<1>{}, row);
}

// Widen `count` values; zeros where there are none.
template <class V, class T>
inline __attribute__((always_inline)) void widened(const T* from, float* to, std::size_t count) {
  constexpr std::size_t width = V::width;
  std::size_t i = 0;
  for (; count - i >= width; i += width) V::store(to + i, from == nullptr ? V::zero() : V::load(from + i));
  if (i < count) V::store(to + i, from == nullptr ? V::zero() : V::load(from + i, count - i), count - i);
}

// The vector that is number n of a row, of which only `part` values are there if it is the last of a partial row.
template <class V, std::size_t vectors, bool partial, class T>
inline __attribute__((always_inline)) typename V::Register load_of(const T* row, std::size_t n, std::size_t part) {
  if constexpr (partial) {
    if (n == vectors - 1) return V::load(row + n * V::width, part);
  }
  return V::load(row + n * V::width);
}

template <class V, std::size_t vectors, bool partial, class T>
inline __attribute__((always_inline)) void store_of(T* row, std::size_t n, typename V::Register value,
                                                    std::size_t part) {
  if constexpr (partial) {
    if (n == vectors - 1) {
      V::store(row + n * V::width, value, part);
      return;
    }
  }
  V::store(row + n * V::width, value);
}

// Hints that memory will be read; any address will do.
inline __attribute__((always_inline)) void soon(const void* from) {
  __builtin_prefetch(from, 0, 3);
}
inline __attribute__((always_inline)) void later(const void* from) {
  __builtin_prefetch(from, 0, 2);
}

// Where the second half of a long sum begins. Each half is a sum over even places and one over odd places, and they
// are added in one order: every tile gives a token the same bits, whatever tokens are beside it.
inline __attribute__((always_inline)) std::size_t middle_of(std::size_t count) {
  return count / 4 * 2;
}

// to[rows, columns] (+)= x[rows, count] matrix[count, columns]. Few rows have both halves at once, so that there
// are sums enough to keep a CPU busy; many have one after the other.
template <class V, class TB, std::size_t rows, std::size_t vectors, bool partial>
void inner_tile(const float* x, std::size_t stride, std::size_t count, const TB* matrix, std::size_t columns,
                bool add, float* to, std::size_t part) {
  using Register = typename V::Register;
  constexpr std::size_t halves = rows * vectors <= 3 ? 2 : 1;
  Register sum[2 * halves][rows][vectors];
  const auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (std::size_t s = 0; s < 2 * halves; ++s) {
#pragma GCC unroll 16
      for (std::size_t m = 0; m < rows; ++m) {
#pragma GCC unroll 16
        for (std::size_t n = 0; n < vectors; ++n) sum[s][m][n] = V::zero();
      }
    }
  };
  const auto step = [&](std::size_t k, std::size_t s) __attribute__((always_inline)) {
    Register right[vectors];
#pragma GCC unroll 16
    for (std::size_t n = 0; n < vectors; ++n)
      right[n] = load_of<V, vectors, partial>(matrix + k * columns, n, part);
#pragma GCC unroll 16
    for (std::size_t m = 0; m < rows; ++m) {
      const Register left = V::set(x[m * stride + k]);
#pragma GCC unroll 16
      for (std::size_t n = 0; n < vectors; ++n) sum[s][m][n] = V::fma(left, right[n], sum[s][m][n]);
    }
  };
  const auto keep = [&](std::size_t s, bool more) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (std::size_t m = 0; m < rows; ++m) {
      float* row = to + m * columns;
#pragma GCC unroll 16
      for (std::size_t n = 0; n < vectors; ++n) {
        Register total = V::add(sum[s][m][n], sum[s + 1][m][n]);
        if (more) total = V::add(total, load_of<V, vectors, partial>(row, n, part));
        store_of<V, vectors, partial>(row, n, total, part);
      }
    }
  };
  const std::size_t middle = middle_of(count);
  clear();
  if constexpr (halves == 2) {
    std::size_t k = 0;
    for (; k < middle; k += 2) {
      step(k, 0);
      step(middle + k, 2);
      step(k + 1, 1);
      step(middle + k + 1, 3);
    }
    for (k += middle; k < count; ++k) step(k, 2 + k % 2);
    keep(0, add);
    keep(2, true);
  } else {
    std::size_t k = 0;
    const auto sum_to = [&](std::size_t end) __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (; end - k >= 2; k += 2) {
        if constexpr (rows >= 3) {  // the next rows, as fast as these are used up
#pragma GCC unroll 16
          for (std::size_t line = 0; line < 2 * rows; line += 16) later(x + rows * stride + k * rows + line);
        }
        step(k, 0);
        step(k + 1, 1);
      }
      if (k < end) step(k++, 0);
    };
    sum_to(middle);
    keep(0, add);
    clear();
    sum_to(count);
    keep(0, true);
  }
}

// Memory that is fetched while something else is computed: a part of it at each step.
struct Ahead {
  const char* at = nullptr;
  std::size_t bytes = 0;  // left
  std::size_t each = 0;   // at a step

  Ahead() = default;
  Ahead(const void* from, std::size_t count, std::size_t steps)
      : at(static_cast<const char*>(from)),
        bytes(from == nullptr ? 0 : count),
        each(steps == 0 ? 0 : count / steps + 1) {
    each = (each + 63) / 64 * 64;
  }
  inline __attribute__((always_inline)) void step() {
    const std::size_t now = bytes < each ? bytes : each;
    for (std::size_t done = 0; done < now; done += 64) later(at + done);
    at += now;
    bytes -= now;
  }
};

// The same, for one vector, by two products at once.
template <class V, class TB, std::size_t rows, bool partial>
void zipped_tile(const float* x, std::size_t stride, std::size_t count, const TB* matrix, std::size_t columns,
                 bool add, float* to, std::size_t part, Ahead* ahead) {
  using Zipped = typename V::Zipped;
  using Register = typename Zipped::Register;
  constexpr std::size_t parts = Zipped::parts;
  Register sum[rows][parts];
  const auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (std::size_t m = 0; m < rows; ++m) {
#pragma GCC unroll 16
      for (std::size_t n = 0; n < parts; ++n) sum[m][n] = Zipped::zero();
    }
  };
  const auto step = [&](const Register* right, std::size_t m, Register left) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (std::size_t n = 0; n < parts; ++n) sum[m][n] = Zipped::fma(left, right[n], sum[m][n]);
  };
  const auto keep = [&](bool more) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (std::size_t m = 0; m < rows; ++m) {
      float* row = to + m * columns;
      typename V::Register total = Zipped::unzip(sum[m]);
      if (more) total = V::add(total, load_of<V, 1, partial>(row, 0, part));
      store_of<V, 1, partial>(row, 0, total, part);
    }
  };
  std::size_t k = 0;
  const auto sum_to = [&](std::size_t end) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (; end - k >= 2; k += 2) {
      Register right[parts];
      const TB* from = matrix + k * columns;
      if (ahead != nullptr && k % 8 == 0) {
        // what is read for the first time comes from far; hardware stops at the end of a page
        for (std::size_t line = 0; line < 8 * columns * sizeof(TB); line += 64) {
          later(reinterpret_cast<const char*>(from + 40 * columns) + line);
        }
        ahead->step();
      }
      Zipped::zip(load_of<V, 1, partial>(from, 0, part), load_of<V, 1, partial>(from + columns, 0, part), right);
#pragma GCC unroll 16
      for (std::size_t m = 0; m < rows; ++m) step(right, m, Zipped::both(x + m * stride + k));
    }
    if (k < end) {
      Register right[parts];
      Zipped::zip(load_of<V, 1, partial>(matrix + k * columns, 0, part), V::zero(), right);
#pragma GCC unroll 16
      for (std::size_t m = 0; m < rows; ++m) step(right, m, Zipped::first(x + m * stride + k));
      ++k;
    }
  };
  clear();
  sum_to(middle_of(count));
  keep(add);
  clear();
  sum_to(count);
  keep(true);
}

// Some columns of the output, and what they are made of.
template <class T>
struct Outer {
  const T* y;
  T* out;
  const float* bias;    // one for all rows, or null
  const float* hidden;  // [rows, rank]
  std::size_t stride;   // of y and out
  std::size_t rank;
  std::size_t part;
};

// out = y + bias + hidden matrix, from `row` on: short sums over many columns.
template <class V, class T, class TB, std::size_t rows, std::size_t vectors, bool partial>
void outer_tile(const Outer<T>& outer, const TB* matrix, std::size_t stride, std::size_t row) {
  using Register = typename V::Register;
  Register sum[rows][vectors];
  const T* y = outer.y + row * outer.stride;
  T* out = outer.out + row * outer.stride;
  const float* hidden = outer.hidden + row * outer.rank;
#pragma GCC unroll 16
  for (std::size_t m = 0; m < rows; ++m) {
#pragma GCC unroll 16
    for (std::size_t n = 0; n < vectors; ++n) {
      sum[m][n] = load_of<V, vectors, partial>(y + m * outer.stride, n, outer.part);
    }
  }
  if (outer.bias != nullptr) {
#pragma GCC unroll 16
    for (std::size_t n = 0; n < vectors; ++n) {
      const Register bias = load_of<V, vectors, partial>(outer.bias, n, outer.part);
#pragma GCC unroll 16
      for (std::size_t m = 0; m < rows; ++m) sum[m][n] = V::add(sum[m][n], bias);
    }
  }
  for (std::size_t r = 0; r < outer.rank; ++r) {
    if constexpr (rows >= 4) {
      if (r < rows) {  // y of the next rows; CPUs fetch lines by two
        const T* next = y + (rows + r) * outer.stride;
#pragma GCC unroll 16
        for (std::size_t at = 0; at < vectors * V::width; at += 128 / sizeof(T)) soon(next + at);
      }
    }
    Register right[vectors];
#pragma GCC unroll 16
    for (std::size_t n = 0; n < vectors; ++n)
      right[n] = load_of<V, vectors, partial>(matrix + r * stride, n, outer.part);
#pragma GCC unroll 16
    for (std::size_t m = 0; m < rows; ++m) {
      const Register left = V::set(hidden[m * outer.rank + r]);
#pragma GCC unroll 16
      for (std::size_t n = 0; n < vectors; ++n) sum[m][n] = V::fma(left, right[n], sum[m][n]);
    }
  }
#pragma GCC unroll 16
  for (std::size_t m = 0; m < rows; ++m) {
#pragma GCC unroll 16
    for (std::size_t n = 0; n < vectors; ++n) {
      store_of<V, vectors, partial>(out + m * outer.stride, n, sum[m][n], outer.part);
    }
  }
}

}  // namespace adexport::kernels
