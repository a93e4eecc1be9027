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

// What not every ONNX Runtime can do.
struct Abilities {
  bool infers;       // shapes
  bool sees_shapes;  // of tensors where they lie (1.24)
};

// One signature for one pair of types; ONNX Runtime joins those of one name.
struct Operator : OrtCustomOp {
  Operator(const OrtApi& ort, const Signature& given, Pair types, const Table& chosen, Abilities can,
           Device where = Device::cpu);

  const OrtApi& api;  // of the library that this was made for
  const Signature& signature;
  Pair pair;
  const Table& table;
  Device device;
  bool sees_shapes;
};

}  // namespace adexport::kernels
