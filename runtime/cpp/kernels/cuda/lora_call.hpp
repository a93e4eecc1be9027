// A LoRA call whose tensors, but for ids, lie on a GPU.
#pragma once

#include "call.hpp"

namespace adexport::kernels::cuda {

// Puts a checked call on a stream (a cudaStream_t). Throws what CUDA refuses.
void run(const LowRankCall& call, const Rows& rows, void* out, void* stream);

}  // namespace adexport::kernels::cuda
