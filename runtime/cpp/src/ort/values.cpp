#include "ort/values.hpp"

#include <functional>
#include <numeric>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

ONNXTensorElementDataType onnx_type(Element element) {
  switch (element) {
    case Element::fp32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case Element::fp16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Element::bf16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case Element::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Element::int32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

std::size_t count_of(const std::vector<std::int64_t>& shape, std::size_t from = 0) {
  return std::accumulate(
      shape.begin() + static_cast<std::ptrdiff_t>(from), shape.end(), std::size_t{1},
      [](std::size_t count, std::int64_t size) { return count * static_cast<std::size_t>(size); });
}

}  // namespace

OrtTensors::OrtTensors(const OrtLibrary& ort) : ort_(ort), memory_(nullptr, ort->ReleaseMemoryInfo) {
  OrtMemoryInfo* memory = nullptr;
  ort_.check(ort_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  memory_.reset(memory);
}

OrtTensor OrtTensors::over(const void* data, Element element, const std::vector<std::int64_t>& shape) const {
  static char nothing = 0;  // an array without elements may have no address
  void* place = data != nullptr ? const_cast<void*>(data) : &nothing;
  OrtValue* value = nullptr;
  ort_.check(ort_->CreateTensorWithDataAsOrtValue(memory_.get(), place, count_of(shape) * size_of(element),
                                                  shape.data(), shape.size(), onnx_type(element), &value));
  return {value, ort_->ReleaseValue};
}

OrtTensor OrtTensors::rows(const BankArray& array, std::int64_t first, std::int64_t last) const {
  auto shape = array.shape;
  shape.front() = last - first;
  const auto row = count_of(array.shape, 1) * size_of(array.element);
  return over(static_cast<const std::byte*>(array.data.get()) + static_cast<std::size_t>(first) * row,
              array.element, shape);
}

Array OrtTensors::taken(std::string name, OrtTensor value) const {
  OrtTensorTypeAndShapeInfo* made = nullptr;
  ort_.check(ort_->GetTensorTypeAndShape(value.get(), &made));
  const OrtOwned<OrtTensorTypeAndShapeInfo> info(made, ort_->ReleaseTensorTypeAndShapeInfo);
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  ort_.check(ort_->GetTensorElementType(made, &type));
  if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    throw Error(Kind::bundle, "the graph is not the one of its manifest",
                Problem{code::bad_manifest, name, "an output of ONNX's type " + std::to_string(type), "float32"});
  }
  Array array;
  array.name = std::move(name);
  std::size_t rank = 0;
  ort_.check(ort_->GetDimensionsCount(made, &rank));
  array.shape.resize(rank);
  ort_.check(ort_->GetDimensions(made, array.shape.data(), rank));
  void* data = nullptr;
  ort_.check(ort_->GetTensorMutableData(value.get(), &data));
  const std::shared_ptr<OrtValue> kept(std::move(value));
  array.values = Floats({kept, static_cast<float*>(data)}, count_of(array.shape));
  return array;
}

OrtBinding::OrtBinding(const OrtLibrary& ort, OrtSession* session)
    : ort_(ort), binding_(nullptr, ort->ReleaseIoBinding) {
  OrtIoBinding* binding = nullptr;
  ort_.check(ort_->CreateIoBinding(session, &binding));
  binding_.reset(binding);
}

void OrtBinding::input(const std::string& name, const OrtValue* value) {
  ort_.check(ort_->BindInput(binding_.get(), name.c_str(), value));
}

void OrtBinding::output(const std::string& name, const OrtValue* value) {
  ort_.check(ort_->BindOutput(binding_.get(), name.c_str(), value));
}

void OrtBinding::output(const std::string& name, const OrtMemoryInfo* memory) {
  ort_.check(ort_->BindOutputToDevice(binding_.get(), name.c_str(), memory));
}

void OrtBinding::run(OrtSession* session, bool copies) {
  if (copies) ort_.check(ort_->SynchronizeBoundInputs(binding_.get()));
  ort_.check(ort_->RunWithBinding(session, nullptr, binding_.get()));
  if (copies) ort_.check(ort_->SynchronizeBoundOutputs(binding_.get()));
}

std::vector<OrtTensor> OrtBinding::outputs() const {
  OrtAllocator* allocator = nullptr;
  ort_.check(ort_->GetAllocatorWithDefaultOptions(&allocator));
  OrtValue** values = nullptr;
  std::size_t count = 0;
  ort_.check(ort_->GetBoundOutputValues(binding_.get(), allocator, &values, &count));
  const std::unique_ptr<OrtValue*, std::function<void(OrtValue**)>> freed(
      values, [allocator](OrtValue** made) { allocator->Free(allocator, made); });
  std::vector<OrtTensor> owned;
  owned.reserve(count);
  for (std::size_t index = 0; index < count; ++index) owned.emplace_back(values[index], ort_->ReleaseValue);
  return owned;
}

}  // namespace adexport::core
