// Any bytes: tensors that lie within them, or an Error.
#include <cstdlib>
#include <memory>

#include "errors.hpp"
#include "safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace adexport::core;
  const auto* start = reinterpret_cast<const std::byte*>(data);
  auto content = std::make_shared<const std::vector<std::byte>>(start, start + size);
  const std::byte* end = content->data() + content->size();
  try {
    const TensorFile file = parse_tensors(std::move(content), "x.safetensors");
    std::size_t bytes = 0;
    for (const auto& [name, view] : file.tensors) {
      if (name.empty() || view.count() == 0 || view.data + view.bytes > end) std::abort();
      bytes += view.bytes;
    }
    if (bytes >= size) std::abort();
  } catch (const Error& error) {
    if (error.kind() != Kind::adapter || error.problems().empty()) std::abort();
  }
  return 0;
}
