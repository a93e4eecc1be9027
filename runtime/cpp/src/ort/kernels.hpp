// Where the library of operators for ONNX Runtime lies (libadexport_kernels).
#pragma once

#include <optional>
#include <string>

namespace adexport::core {

// The path to register; empty: without. `named` is what the caller asked for ("" or "none": without); else it is
// $ADEXPORT_KERNELS, if that says anything, else what lies beside libadexport. Throws Kind::dependency if a named
// one is not there.
std::string find_kernels(const std::optional<std::string>& named);

// See that a library is of kernels, and of those that stand for the functions of today's graphs: ONNX Runtime would
// take any operators. Throws Kind::dependency.
void check_kernels(const std::string& path);

}  // namespace adexport::core
