#include "lora_call.hpp"

#include <stdexcept>
#include <vector>

#include "lora.hpp"

namespace adexport::kernels::cuda {

void run(const LowRankCall& call, const Rows& rows, void* out, void* stream) {
  std::vector<std::int32_t> picked(rows.batch());
  for (std::size_t row = 0; row < rows.batch(); ++row) {
    const bool idle = !call.used || rows.skipped(row);
    if (!idle && rows[row] > INT32_MAX)
      throw Misfit(std::string(call.where) + ": more rows than 31 bits can count");
    picked[row] = idle ? -1 : static_cast<std::int32_t>(rows[row]);
  }
  const Lora lora{call.y.data,
                  out,
                  call.bias.there ? call.bias.data : nullptr,
                  call.x.data,
                  call.down.data,
                  call.up.data,
                  call.y.at(0),
                  call.y.at(1),
                  call.x.at(2),
                  call.down.at(2),
                  call.y.at(2),
                  picked.data(),
                  call.pair == Pair::half_half};
  if (const char* problem = launch(lora, stream)) {
    throw std::runtime_error(std::string(call.where) + " on the GPU: " + problem);
  }
}

}  // namespace adexport::kernels::cuda
