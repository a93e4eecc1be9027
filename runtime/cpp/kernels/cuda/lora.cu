#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "lora.hpp"

namespace adexport::kernels::cuda {

namespace {

constexpr unsigned threads = 256;
constexpr unsigned tile = 16;                 // tokens that a block has at most
constexpr std::size_t shared_floats = 12288;  // 48 KiB: what every GPU gives without asking
constexpr std::size_t rows_a_launch = 512;

// The rows travel with the launch: no copy to the device, and nothing to keep until it is done.
struct Rows {
  std::int32_t of[rows_a_launch];
};

struct Sizes {
  unsigned tokens, in, rank, features, tokens_a_block;
};

__device__ float widen(float value) {
  return value;
}
__device__ float widen(__half value) {
  return __half2float(value);
}
__device__ void narrow(float& to, float value) {
  to = value;
}
__device__ void narrow(__half& to, float value) {
  to = __float2half_rn(value);
}

// hidden[token, r] = x A for the tokens of this block. Sums are split among threads that have nothing else to do,
// and joined in a fixed order.
template <class T>
__device__ void project(const T* x, const T* a, const Sizes& sizes, unsigned tokens, float* hidden, float* parts) {
  const unsigned pairs = tokens * sizes.rank;
  for (unsigned first = 0; first < pairs; first += threads) {
    const unsigned here = min(threads, pairs - first);
    const unsigned splits = threads / here;
    const unsigned split = threadIdx.x / here;
    const unsigned pair = first + threadIdx.x % here;
    if (split < splits) {
      const unsigned token = pair / sizes.rank;
      const unsigned r = pair % sizes.rank;
      float sum = 0;
      for (unsigned k = split; k < sizes.in; k += splits) {
        sum = fmaf(widen(x[static_cast<std::size_t>(token) * sizes.in + k]),
                   widen(a[static_cast<std::size_t>(k) * sizes.rank + r]), sum);
      }
      parts[split * here + threadIdx.x % here] = sum;
    }
    __syncthreads();
    if (threadIdx.x < here) {
      float sum = 0;
      for (unsigned s = 0; s < splits; ++s) sum += parts[s * here + threadIdx.x];
      hidden[first + threadIdx.x] = sum;
    }
    __syncthreads();
  }
}

// A block for each row of the batch (y) and tile of tokens (x).
template <class T>
__global__ void lora_kernel(const T* y, T* out, const T* bias, const T* x, const T* a, const T* b, Sizes sizes,
                            Rows rows) {
  extern __shared__ float shared[];
  float* parts = shared;
  float* hidden = shared + threads;
  const std::size_t first = static_cast<std::size_t>(blockIdx.y) * sizes.tokens + blockIdx.x * sizes.tokens_a_block;
  const unsigned tokens = min(sizes.tokens_a_block, sizes.tokens - blockIdx.x * sizes.tokens_a_block);
  const std::int32_t row = rows.of[blockIdx.y];
  const unsigned rank = row < 0 ? 0 : sizes.rank;
  if (rank == 0 && bias == nullptr && y == out) return;
  const T* up = b;
  if (rank > 0) {
    up += static_cast<std::size_t>(row) * rank * sizes.features;
    project(x + first * sizes.in, a + static_cast<std::size_t>(row) * sizes.in * rank, sizes, tokens, hidden,
            parts);
  }
  for (unsigned column = threadIdx.x; column < sizes.features; column += threads) {
    float sums[tile];
#pragma unroll
    for (unsigned token = 0; token < tile; ++token) sums[token] = 0;
    for (unsigned r = 0; r < rank; ++r) {
      const float weight = widen(up[static_cast<std::size_t>(r) * sizes.features + column]);
#pragma unroll
      for (unsigned token = 0; token < tile; ++token) {
        if (token < tokens) sums[token] = fmaf(hidden[token * rank + r], weight, sums[token]);
      }
    }
    const float shared_bias = bias == nullptr ? 0.0F : widen(bias[column]);
#pragma unroll
    for (unsigned token = 0; token < tile; ++token) {
      if (token < tokens) {
        const std::size_t at = (first + token) * sizes.features + column;
        narrow(out[at], widen(y[at]) + shared_bias + sums[token]);
      }
    }
  }
}

template <class T>
cudaError_t launch_as(const Lora& lora, cudaStream_t stream) {
  const std::size_t fitting = (shared_floats - threads) / std::max<std::size_t>(lora.rank, 1);
  const auto tokens_a_block = static_cast<unsigned>(std::min<std::size_t>(tile, fitting));
  const Sizes sizes{static_cast<unsigned>(lora.tokens), static_cast<unsigned>(lora.in),
                    static_cast<unsigned>(lora.rank), static_cast<unsigned>(lora.features), tokens_a_block};
  const std::size_t shared = (threads + tokens_a_block * lora.rank) * sizeof(float);
  for (std::size_t row = 0; row < lora.batch; row += rows_a_launch) {
    const std::size_t count = std::min(rows_a_launch, lora.batch - row);
    Rows rows{};
    std::copy_n(lora.rows + row, count, rows.of);
    const std::size_t flow = row * lora.tokens;
    const dim3 grid((sizes.tokens + tokens_a_block - 1) / tokens_a_block, static_cast<unsigned>(count));
    lora_kernel<T><<<grid, threads, shared, stream>>>(
        static_cast<const T*>(lora.y) + flow * lora.features, static_cast<T*>(lora.out) + flow * lora.features,
        static_cast<const T*>(lora.bias), static_cast<const T*>(lora.x) + flow * lora.in,
        static_cast<const T*>(lora.a), static_cast<const T*>(lora.b), sizes, rows);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

const char* launch(const Lora& lora, void* stream) {
  if (lora.batch == 0 || lora.tokens == 0 || lora.features == 0) return nullptr;
  if (lora.rank > greatest_rank) return "the rank is greater than the GPU's shared memory has room for";
  if (std::max({lora.tokens, lora.in, lora.features}) > 0x7fffffff) return "a size does not fit 31 bits";
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = lora.half ? launch_as<__half>(lora, queue) : launch_as<float>(lora, queue);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace adexport::kernels::cuda
