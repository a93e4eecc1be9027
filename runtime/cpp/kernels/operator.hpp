// An operator as ONNX Runtime takes it.
#pragma once

#include <onnxruntime_c_api.h>

#include <string>
#include <vector>

#include "call.hpp"
#include "signature.hpp"

namespace adexport::kernels {

// What one binary must run with: the interface of ONNX Runtime 1.23.
constexpr std::uint32_t api_version = 23;

// One signature for one pair of types; ONNX Runtime joins those of one name.
struct Operator : OrtCustomOp {
  Operator(const Signature& given, Pair types, const Table& chosen);

  const Signature& signature;
  Pair pair;
  const Table& table;
};

}  // namespace adexport::kernels
