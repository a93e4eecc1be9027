// A bound adapter: one tenant's slot tensors, checked whole against a bundle.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "safetensors.hpp"

namespace adexport::core {

// What a row of a bank holds of one slot input: float32 values, or one int64 (codes, guards).
struct RowTensor {
  std::vector<std::int64_t> shape;  // without the rows
  const float* values = nullptr;    // held by RowTensors::content
  std::int64_t number = 0;          // where `values` is null
};

// What is bound under a name.
struct RowTensors {
  std::map<std::string, RowTensor> tensors;  // by slot input; those not named are the identity
  std::shared_ptr<const void> content;
  std::optional<std::vector<std::string>> labels;  // of the adapter's own head
};

// Read a bound adapter and check it; `rows()` of the Python BoundAdapter, codes and guards included.
// Errors are of Kind::adapter and name everything that does not fit.
RowTensors load_bound(const std::filesystem::path& path, const Manifest& manifest);
RowTensors check_bound(const TensorFile& file, const Manifest& manifest);

}  // namespace adexport::core
