// Any header and data, parted by a zero byte: rows of sound values, or an Error.
//
// The length of the header is put before it: with that, what is changed in it is read more often than not.
#include <cmath>
#include <cstdlib>

#include "bound.hpp"
#include "errors.hpp"
#include "support.hpp"

namespace {

using namespace adexport::core;

void check_row(const RowTensor& row) {
  std::size_t count = 1;
  for (const std::int64_t size : row.shape) count *= static_cast<std::size_t>(size);
  for (std::size_t index = 0; row.values != nullptr && index < count; ++index) {
    if (!std::isfinite(row.values[index])) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Manifest manifest = parse_manifest(adexport::tests::every_slot_manifest().dump());
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::size_t end = text.find('\0');
  const std::string header = text.substr(0, end);
  const std::string values = end == std::string::npos ? std::string() : text.substr(end + 1);
  const auto content = adexport::tests::bytes_of(adexport::tests::raw_safetensors(header, values));
  try {
    const RowTensors rows = check_bound(parse_tensors(content, "x.safetensors"), manifest);
    for (const auto& item : rows.tensors) check_row(item.second);
  } catch (const Error& error) {
    if (error.kind() != Kind::adapter || error.problems().empty()) std::abort();
  }
  return 0;
}
