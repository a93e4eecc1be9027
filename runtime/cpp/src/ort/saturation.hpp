// Whether this CPU adds products uint8 · int8 in 16 bits, where they do not fit.
//
// x86 CPUs without VNNI do (vpmaddubsw saturates). ONNX Runtime then needs session.x64quantprecision,
// which costs all that quantization gains on a CPU that has VNNI: so the CPU is asked.
#pragma once

#include "ort/library.hpp"

namespace adexport::core {

// Runs a product of the largest values there are, once for each library.
bool saturates(const OrtLibrary& ort);

}  // namespace adexport::core
