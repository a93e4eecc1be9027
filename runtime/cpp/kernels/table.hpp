// What a set of instructions offers: the same functions for each pair of types.
#pragma once

#include <cstddef>

#include "types.hpp"

namespace adexport::kernels {

// Tokens that have one adapter: out = y + bias + act(x down + down_bias) up + up_bias.
// bias has the type of y; what belongs to the adapter has the type of the banks. Biases may be null.
struct LowRank {
  const void* y;
  void* out;  // may be y
  const void* bias;
  const void* x;
  const void* down;  // [in, rank]
  const void* down_bias;
  const void* up;  // [rank, features]
  const void* up_bias;
  std::size_t tokens, in, rank, features;
  Activation activation;
  const void* next_down;  // of the tokens behind these, or null: a hint of what to fetch meanwhile
  float* scratch;         // scratch_floats() of it, on a boundary of 64 bytes
};

// Tokens that have one vector: out = x * vector, or x + vector.
struct Elementwise {
  const void* x;
  void* out;  // may be x
  const void* vector;
  std::size_t tokens, features;
};

struct Kernels {
  void (*low_rank)(const LowRank&);
  void (*scale)(const Elementwise&);
  void (*add)(const Elementwise&);
};

struct Table {
  const char* name;
  Kernels pairs[pair_count];

  const Kernels& operator[](Pair pair) const { return pairs[static_cast<std::size_t>(pair)]; }
};

// The most columns of `up` that are worked on at once.
constexpr std::size_t panel_columns = 64;

// x down of all tokens, and a panel of `up`.
constexpr std::size_t scratch_floats(std::size_t tokens, std::size_t rank) {
  return (tokens + panel_columns) * rank + 16;
}

const Table& portable_table();
#if defined(ADEXPORT_KERNELS_X86)
const Table& avx2_table();
const Table& avx512_table();
#endif

}  // namespace adexport::kernels
