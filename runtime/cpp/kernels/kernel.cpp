#include "kernel.hpp"

#include <algorithm>
#include <utility>

#if defined(ADEXPORT_KERNELS_CUDA)
#include "lora_call.hpp"
#endif

namespace adexport::kernels {

namespace {

class ContextPool final : public Pool {
 public:
  ContextPool(const OrtApi& api, const OrtKernelContext& context) : api_(api), context_(context) {}

  void run(std::size_t total, std::size_t batches, Task task, void* data) const override {
    check(api_, api_.KernelContext_ParallelFor(&context_, task, total, batches, data));
  }

 private:
  const OrtApi& api_;
  const OrtKernelContext& context_;
};

bool has(const Signature& signature, std::string_view name) {
  return std::any_of(signature.inputs.begin(), signature.inputs.end(),
                     [&](const Input& input) { return input.name == name; });
}

// A text of ONNX Runtime's, which tells its size first.
template <class Read>
std::string text(const OrtApi& api, const Read& read) {
  std::size_t size = 0;
  check(api, read(nullptr, &size));
  std::string value(size, '\0');
  check(api, read(value.data(), &size));
  value.resize(size == 0 ? 0 : size - 1);
  return value;
}

Activation activation_of(const std::string& where, const std::string& name) {
  constexpr std::pair<std::string_view, Activation> known[]{
      {"relu", Activation::relu}, {"gelu", Activation::gelu}, {"gelu_new", Activation::gelu_new},
      {"silu", Activation::silu}, {"tanh", Activation::tanh}, {"linear", Activation::linear}};
  std::string names;
  for (const auto& [known_name, activation] : known) {
    if (name == known_name) return activation;
    names += (names.empty() ? "" : ", ") + std::string(known_name);
  }
  throw Misfit(where + ": activations has '" + name + "', expected names among " + names + ", with commas between");
}

// One text with commas: there is no way to read a list of texts in version 23 of the interface.
std::vector<Activation> activations_of(const OrtApi& api, const OrtKernelInfo& info, const std::string& where) {
  std::string names;
  try {
    names = text(api, [&](char* to, std::size_t* size) {
      return api.KernelInfoGetAttribute_string(&info, "activations", to, size);
    });
  } catch (const Failure& failure) {
    throw Misfit(where + ": the attribute activations must be one string, names with commas between (" +
                 failure.what() + ")");
  }
  std::vector<Activation> found;
  for (std::size_t at = 0; at <= names.size();) {
    const std::size_t end = std::min(names.find(',', at), names.size());
    found.push_back(activation_of(where, names.substr(at, end - at)));
    at = end + 1;
  }
  return found;
}

}  // namespace

Kernel::Kernel(const Operator& op, const OrtApi& api, const OrtKernelInfo& info)
    : operator_(op), api_(api), where_(op.signature.name) {
  const std::string node =
      text(api, [&](char* to, std::size_t* size) { return api.KernelInfo_GetNodeName(&info, to, size); });
  if (!node.empty()) where_ += " (" + node + ")";
  if (has(op.signature, "down")) activations_ = activations_of(api, info, where_);
}

void Kernel::compute(OrtKernelContext& context) const {
  if (has(operator_.signature, "x") && has(operator_.signature, "y")) {
    low_rank(context);
  } else {
    elementwise(context);
  }
}

View Kernel::input(const OrtKernelContext& context, std::string_view name) const {
  const auto& inputs = operator_.signature.inputs;
  const auto place =
      std::find_if(inputs.begin(), inputs.end(), [&](const Input& input) { return input.name == name; });
  View view;
  if (place == inputs.end()) return view;
  const auto index = static_cast<std::size_t>(place - inputs.begin());
  std::size_t count = 0;
  check(api_, api_.KernelContext_GetInputCount(&context, &count));
  if (index >= count) return view;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(&context, index, &value));
  if (value == nullptr) return view;
  read_shape(*value, view);
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  view.data = data;
  view.there = true;
  return view;
}

void Kernel::read_shape(const OrtValue& value, View& view) const {
  if (operator_.sees_shapes) {  // without a copy of them
    ONNXTensorElementDataType element{};
    const std::int64_t* sizes = nullptr;
    check(api_, api_.GetTensorElementTypeAndShapeDataReference(&value, &element, &sizes, &view.axes));
    std::copy_n(sizes, std::min(view.axes, view.shape.size()), view.shape.data());
    return;
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_, api_.GetTensorTypeAndShape(&value, &info));
  OrtStatus* status = api_.GetDimensionsCount(info, &view.axes);
  if (status == nullptr)
    status = api_.GetDimensions(info, view.shape.data(), std::min(view.axes, view.shape.size()));
  api_.ReleaseTensorTypeAndShapeInfo(info);
  check(api_, status);
}

bool Kernel::flag(const OrtKernelContext& context) const {
  if (!has(operator_.signature, "used")) return true;
  const View used = input(context, "used");
  if (!used.there || used.axes != 0) throw Misfit(where_ + ": used must be one bool without axes");
  return *static_cast<const bool*>(used.data);
}

void* Kernel::output(OrtKernelContext& context, const View& like) const {
  OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(&context, 0, like.shape.data(), like.axes, &value));
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(value, &data));
  return data;
}

void Kernel::low_rank(OrtKernelContext& context) const {
  const bool bottleneck = has(operator_.signature, "down");
  LowRankCall call{};
  call.where = where_.c_str();
  call.pair = operator_.pair;
  call.y = input(context, "y");
  call.x = input(context, "x");
  call.bias = input(context, "bias");
  call.down = input(context, bottleneck ? "down" : "A");
  call.up = input(context, bottleneck ? "up" : "B");
  call.down_bias = input(context, "down_bias");
  call.up_bias = input(context, "up_bias");
  call.code = input(context, "code");
  call.ids = input(context, "ids");
  call.activations = &activations_;
  call.used = flag(context);
  if (bottleneck && !call.code.there && activations_.size() > 1) {
    throw Misfit(where_ + ": there are " + std::to_string(activations_.size()) +
                 " activations, but no code to choose by");
  }
  const Rows rows = call.checked();
#if defined(ADEXPORT_KERNELS_CUDA)
  if (operator_.device == Device::cuda) {
    void* stream = nullptr;
    check(api_, api_.KernelContext_GetGPUComputeStream(&context, &stream));
    cuda::run(call, rows, output(context, call.y), stream);
    return;
  }
#endif
  call.run(rows, output(context, call.y), operator_.table, ContextPool(api_, context));
}

void Kernel::elementwise(OrtKernelContext& context) const {
  const bool scales = has(operator_.signature, "scale");
  ElementwiseCall call{};
  call.where = where_.c_str();
  call.pair = operator_.pair;
  call.x = input(context, scales ? "x" : "y");
  call.vector = input(context, scales ? "scale" : "bias");
  call.ids = input(context, "ids");
  call.scales = scales;
  const Rows rows = call.checked();
  call.run(rows, output(context, call.x), operator_.table, ContextPool(api_, context));
}

}  // namespace adexport::kernels
