#include "operator.hpp"

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernel.hpp"

namespace adexport::kernels {

namespace {

const Operator& self(const OrtCustomOp* op) {
  return *static_cast<const Operator*>(op);
}

// The kernel with the interface that its failures are told by.
struct Held {
  const OrtApi& api;
  Kernel kernel;
};

ONNXTensorElementDataType element_type(Pair pair, Takes takes) {
  struct Types {
    ONNXTensorElementDataType flow, bank;
  };
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  constexpr auto f16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  constexpr auto bf16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  constexpr Types types[pair_count]{{f32, f32}, {f16, f16}, {bf16, bf16}, {f32, f16}, {f32, bf16}};
  switch (takes) {
    case Takes::flow:
      return types[static_cast<std::size_t>(pair)].flow;
    case Takes::bank:
      return types[static_cast<std::size_t>(pair)].bank;
    case Takes::integers:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Takes::flag:
      break;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
}

OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(*api, [&] { *kernel = new Held{*api, Kernel(self(op), *api, *info)}; });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Held& held = *static_cast<const Held*>(kernel);
  return guarded(held.api, [&] { held.kernel.compute(*context); });
}

void destroy(void* kernel) {
  delete static_cast<Held*>(kernel);
}

std::size_t in_place(int** input, int** output) {
  *input = static_cast<int*>(std::calloc(1, sizeof(int)));
  *output = static_cast<int*>(std::calloc(1, sizeof(int)));
  return *input != nullptr && *output != nullptr ? 1 : 0;
}

void release_in_place(int* input, int* output) {
  std::free(input);
  std::free(output);
}

// Whether every size is a number or has a name: ONNX Runtime would take another for -1.
OrtStatus* all_known(const OrtApi& api, const OrtTensorTypeAndShapeInfo& info, std::size_t axes, bool& known) {
  std::vector<std::int64_t> sizes(axes);
  std::vector<const char*> names(axes);
  OrtStatus* status = api.GetDimensions(&info, sizes.data(), axes);
  if (status == nullptr) status = api.GetSymbolicDimensions(&info, names.data(), axes);
  if (status != nullptr) return status;
  known = true;
  for (std::size_t axis = 0; axis < axes; ++axis) {
    known = known && (sizes[axis] >= 0 || (names[axis] != nullptr && *names[axis] != '\0'));
  }
  return nullptr;
}

// The output has the shape of the first input, names of sizes included; of what is not known nothing is said.
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = self(op).api;           // the call brings none
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
  OrtStatus* status = api.ShapeInferContext_GetInputTypeShape(context, 0, &info);
  std::size_t axes = 0;
  bool known = false;
  if (status == nullptr) status = api.GetDimensionsCount(info, &axes);
  if (status == nullptr && axes > 0) status = all_known(api, *info, axes, known);
  if (status != nullptr || !known) return status;
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, info);
}

}  // namespace

Operator::Operator(const OrtApi& ort, const Signature& given, Pair types, const Table& chosen, Abilities can,
                   Device where)
    : OrtCustomOp{},
      api(ort),
      signature(given),
      pair(types),
      table(chosen),
      device(where),
      sees_shapes(can.sees_shapes) {
  version = api_version;
  GetName = [](const OrtCustomOp* op) { return self(op).signature.name; };
  GetExecutionProviderType = [](const OrtCustomOp* op) -> const char* {
    return self(op).device == Device::cuda ? "CUDAExecutionProvider" : nullptr;
  };
  GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).signature.inputs.size(); };
  GetInputType = [](const OrtCustomOp* op, std::size_t index) {
    return element_type(self(op).pair, self(op).signature.inputs[index].takes);
  };
  GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  GetOutputType = [](const OrtCustomOp* op, std::size_t) { return element_type(self(op).pair, Takes::flow); };
  GetInputCharacteristic = [](const OrtCustomOp* op, std::size_t index) {
    return self(op).signature.inputs[index].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  // ids and flags are looked at before the GPU is given work: a bad id is an error, not a fault of the device
  GetInputMemoryType = [](const OrtCustomOp* op, std::size_t index) {
    const Takes takes = self(op).signature.inputs[index].takes;
    const bool host = self(op).device == Device::cuda && (takes == Takes::integers || takes == Takes::flag);
    return host ? OrtMemTypeCPUInput : OrtMemTypeDefault;
  };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return std::numeric_limits<int>::max(); };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = destroy;
  if (can.infers) InferOutputShapeFn = infer_shape;
  GetMayInplace = in_place;
  ReleaseMayInplace = release_in_place;
}

}  // namespace adexport::kernels
