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

enum class Device : unsigned char { cpu, cuda };

// One signature for one pair of types; ONNX Runtime joins those of one name.
struct Operator : OrtCustomOp {
  // `infers`: whether shapes are inferred
  Operator(const OrtApi& ort, const Signature& given, Pair types, const Table& chosen, bool infers,
           Device where = Device::cpu);

  const OrtApi& api;  // of the library that this was made for
  const Signature& signature;
  Pair pair;
  const Table& table;
  Device device;
};

}  // namespace adexport::kernels
