// y + act(x down + down_bias) up + up_bias for tokens of one adapter, over vectors V.
//
// Templates over a vector of one set of instructions only: what they make must never be shared with code for
// another CPU. So nothing of the standard library is used here.
#pragma once

#include "../table.hpp"
#include "activation.hpp"
#include "tile.hpp"

namespace adexport::kernels {

template <class V, class T, class TB>
struct LowRankOf {
  static constexpr std::size_t width = V::width;
  static constexpr bool wide = V::registers == 32;
  // vectors of a row, and rows at most, that a tile keeps in registers
  static constexpr std::size_t inner_vectors = wide ? 4 : 2;
  static constexpr std::size_t panel_vectors = wide ? 4 : 2;
  static constexpr std::size_t panel_rows = 6;
  static constexpr std::size_t panel = panel_vectors * width;
  // features of x that are widened at once
  static constexpr std::size_t chunk = 256;
  static constexpr std::size_t chunk_rows = 12;
  static_assert(panel <= panel_columns, "a panel must fit the scratch");

  static void run(const LowRank& work) {
    float* hidden = work.scratch;
    float* packed = work.scratch + (work.tokens * work.rank + 15) / 16 * 16;
    project(work, hidden);
    activate<V>(work.activation, hidden, work.tokens * work.rank);
    expand(work, hidden, packed);
  }

  // hidden = x down + down_bias, [tokens, rank]
  static void project(const LowRank& work, float* hidden) {
    const std::size_t rank = work.rank;
    const auto* bias = static_cast<const TB*>(work.down_bias);
    if (bias != nullptr || work.in == 0) {
      for (std::size_t token = 0; token < work.tokens; ++token) widened<V>(bias, hidden + token * rank, rank);
    }
    const auto* x = static_cast<const T*>(work.x);
    const auto* down = static_cast<const TB*>(work.down);
    Ahead up(work.up, rank * work.features * sizeof(TB), (work.in + 7) / 8);
    for (std::size_t token = 0; token < work.tokens; token += chunk_rows) {
      const std::size_t rows = work.tokens - token < chunk_rows ? work.tokens - token : chunk_rows;
      project_rows(x + token * work.in, down, work, rows, bias != nullptr, hidden + token * rank,
                   token == 0 ? &up : nullptr);
    }
  }

  static void project_rows(const float* x, const TB* down, const LowRank& work, std::size_t rows, bool add,
                           float* hidden, Ahead* ahead) {
    if (work.in > 0) project_chunk(x, work.in, work.in, down, work.rank, rows, add, hidden, ahead);
  }

  template <class Narrow>
  static void project_rows(const Narrow* x, const TB* down, const LowRank& work, std::size_t rows, bool add,
                           float* hidden, Ahead* ahead) {
    alignas(64) float values[chunk_rows * chunk];
    for (std::size_t k = 0; k < work.in; k += chunk) {
      const std::size_t count = work.in - k < chunk ? work.in - k : chunk;
      for (std::size_t row = 0; row < rows; ++row) widened<V>(x + row * work.in + k, values + row * chunk, count);
      project_chunk(values, chunk, count, down + k * work.rank, work.rank, rows, add || k > 0, hidden, ahead);
    }
  }

  static void project_chunk(const float* x, std::size_t stride, std::size_t count, const TB* down, std::size_t rank,
                            std::size_t rows, bool add, float* hidden, Ahead* ahead) {
    constexpr std::size_t most = inner_vectors * width;
    std::size_t column = 0;
    for (; rank - column >= most; column += most) {
      inner_tiles<V, inner_vectors, false>(x, stride, count, down + column, rank, rows, add, hidden + column, 0,
                                           column == 0 ? ahead : nullptr);
    }
    const std::size_t left = rank - column;
    if (left == 0) return;
    down += column;
    hidden += column;
    if (left <= V::Narrower::width) {
      inner_columns<typename V::Narrower, 1>(x, stride, count, down, rank, rows, add, hidden, left, ahead);
    } else if (left <= width) {
      inner_columns<V, 1>(x, stride, count, down, rank, rows, add, hidden, left, ahead);
    } else if (left <= 2 * width) {
      inner_columns<V, 2>(x, stride, count, down, rank, rows, add, hidden, left, ahead);
    } else if constexpr (inner_vectors > 2) {
      if (left <= 3 * width) {
        inner_columns<V, 3>(x, stride, count, down, rank, rows, add, hidden, left, ahead);
      } else {
        inner_columns<V, 4>(x, stride, count, down, rank, rows, add, hidden, left, ahead);
      }
    }
  }

  template <class W, std::size_t vectors>
  static void inner_columns(const float* x, std::size_t stride, std::size_t count, const TB* down, std::size_t rank,
                            std::size_t rows, bool add, float* hidden, std::size_t columns, Ahead* ahead) {
    const std::size_t part = columns - (vectors - 1) * W::width;
    if (part == W::width) {
      inner_tiles<W, vectors, false>(x, stride, count, down, rank, rows, add, hidden, 0, ahead);
    } else {
      inner_tiles<W, vectors, true>(x, stride, count, down, rank, rows, add, hidden, part, ahead);
    }
  }

  template <class W, std::size_t vectors, bool partial>
  static void inner_tiles(const float* x, std::size_t stride, std::size_t count, const TB* down, std::size_t rank,
                          std::size_t rows, bool add, float* hidden, std::size_t part, Ahead* ahead) {
    // of which each has two sums
    constexpr std::size_t most = (wide ? 12 : 6) / vectors;
    by_rows<most>(rows, [&](auto size, std::size_t row) {
      constexpr std::size_t tile_rows = decltype(size)::value;
      if constexpr (wide && vectors == 1 && tile_rows >= 4) {
        zipped_tile<W, TB, tile_rows, partial>(x + row * stride, stride, count, down, rank, add,
                                               hidden + row * rank, part, row == 0 ? ahead : nullptr);
      } else {
        inner_tile<W, TB, tile_rows, vectors, partial>(x + row * stride, stride, count, down, rank, add,
                                                       hidden + row * rank, part);
      }
    });
  }

  // out = y + bias + up_bias + hidden up
  static void expand(const LowRank& work, const float* hidden, float* packed) {
    std::size_t column = 0;
    Ahead down(work.next_down, work.in * work.rank * sizeof(TB), (work.features + panel - 1) / panel);
    if (work.tokens == 1) {
      constexpr std::size_t vectors = wide ? 12 : 8;
      constexpr std::size_t columns = vectors * width;
      for (; work.features - column >= columns; column += columns) {
        expand_panel<vectors, false>(work, hidden, packed, column, 0);
      }
    }
    for (; work.features - column >= panel; column += panel) {
      down.step();
      expand_panel<panel_vectors, false>(work, hidden, packed, column, 0);
    }
    if constexpr (panel_vectors > 2) {
      if (work.features - column >= 2 * width) {
        expand_panel<2, false>(work, hidden, packed, column, 0);
        column += 2 * width;
      }
    }
    for (; work.features - column >= width; column += width) {
      expand_panel<1, false>(work, hidden, packed, column, 0);
    }
    if (column < work.features) expand_panel<1, true>(work, hidden, packed, column, work.features - column);
  }

  template <std::size_t vectors, bool partial>
  static void expand_panel(const LowRank& work, const float* hidden, float* packed, std::size_t column,
                           std::size_t part) {
    constexpr std::size_t columns = vectors * width;
    const std::size_t count = partial ? part : columns;
    const auto* up = static_cast<const TB*>(work.up) + column;
    alignas(64) float bias[columns];
    const bool biased = sum_of_biases<columns>(work, column, count, bias);
    const Outer<T> outer{static_cast<const T*>(work.y) + column,
                         static_cast<T*>(work.out) + column,
                         biased ? bias : nullptr,
                         hidden,
                         work.features,
                         work.rank,
                         part};
    if constexpr (vectors > panel_vectors) {
      outer_tile<V, T, TB, 1, vectors, partial>(outer, up, work.features, 0);
    } else if (work.tokens > panel_rows) {
      for (std::size_t r = 0; r < work.rank; ++r) {
        const TB* from = up + r * work.features;
        for (std::size_t at = columns; at < 2 * columns; at += 128 / sizeof(TB)) soon(from + at);  // the next panel
        widened<V>(from, packed + r * columns, count);
      }
      by_rows<panel_rows>(work.tokens, [&](auto size, std::size_t row) {
        outer_tile<V, T, float, decltype(size)::value, vectors, partial>(outer, packed, columns, row);
      });
    } else {
      by_rows<panel_rows>(work.tokens, [&](auto size, std::size_t row) {
        outer_tile<V, T, TB, decltype(size)::value, vectors, partial>(outer, up, work.features, row);
      });
    }
  }

  // What each token gets besides; whether there is anything.
  template <std::size_t columns>
  static bool sum_of_biases(const LowRank& work, std::size_t column, std::size_t count, float* bias) {
    const auto* own = static_cast<const TB*>(work.up_bias);
    const auto* shared = static_cast<const T*>(work.bias);
    if (own == nullptr && shared == nullptr) return false;
    widened<V>(own == nullptr ? own : own + column, bias, count);
    if (shared != nullptr) {
      alignas(64) float more[columns];
      widened<V>(shared + column, more, count);
      for (std::size_t i = 0; i < count; ++i) bias[i] += more[i];
    }
    return true;
  }
};

}  // namespace adexport::kernels
