// LoRA on a GPU, for those who do not compile CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adexport::kernels::cuda {

// out = y + bias + (x A[row]) B[row] for each row of a batch; all but `rows` is memory of the device.
struct Lora {
  const void* y;
  void* out;         // may be y
  const void* bias;  // [features] for all rows, or null
  const void* x;
  const void* a;  // [bank rows, in, rank]
  const void* b;  // [bank rows, rank, features]
  std::size_t batch, tokens, in, rank, features;
  const std::int32_t*
      rows;   // on the host: the row of the banks for each row of the batch; -1: none, out = y + bias
  bool half;  // binary16 all over, else binary32; sums are binary32 in any case
};

// Puts the work on a stream (a cudaStream_t) and does not wait for it. Null, or what CUDA says is wrong.
// Rows are not checked here: whoever calls has done so on the host.
const char* launch(const Lora& lora, void* stream);

// The greatest rank that launch() can do.
constexpr std::size_t greatest_rank = 12288 - 256;

}  // namespace adexport::kernels::cuda
