#include "ort/providers.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>

#include "errors.hpp"

namespace adexport::core {

namespace {

// "tensorrt", an engine in the bundle, is the Python runtime's alone.
const std::array<Provider, 4>& known() {
  static const std::array<Provider, 4> providers{{
      {"cpu", "CPUExecutionProvider", false},
      {"cuda", "CUDAExecutionProvider", false},
      {"ort-tensorrt", "TensorrtExecutionProvider", true},
      {"ort-tensorrt-rtx", "NvTensorRTRTXExecutionProvider", true},
  }};
  return providers;
}

// What a model is made of: on the CPU it would be the model that runs there, not arithmetic with sizes.
const std::set<std::string, std::less<>>& computing() {
  static const std::set<std::string, std::less<>> operators{"Attention",
                                                            "GroupQueryAttention",
                                                            "MultiHeadAttention",
                                                            "SkipLayerNormalization",
                                                            "Conv",
                                                            "Gemm",
                                                            "MatMul",
                                                            "MatMulInteger",
                                                            "MatMulNBits",
                                                            "FusedMatMul",
                                                            "DynamicQuantizeLinear",
                                                            "BiasGelu",
                                                            "FastGelu",
                                                            "Gelu",
                                                            "Softmax",
                                                            "LayerNormalization",
                                                            "RMSNormalization"};
  return operators;
}

template <class Range, class Name>
std::string joined(const Range& range, Name name) {
  std::string text;
  for (const auto& item : range) text += (text.empty() ? "" : ", ") + name(item);
  return text;
}

Problem own_operator(const Provider& provider, const std::string& subject, const std::string& got) {
  return Problem{code::provider_unavailable,
                 subject + " on " + provider.name,
                 got,
                 "operators of ONNX that TensorRT has",
                 "the graph is lowered for ONNX Runtime's own kernels",
                 "ask for cuda"};
}

[[noreturn]] void unavailable(const Provider& provider, const std::string& got) {
  const std::string libraries = provider.whole ? "install the TensorRT that this ONNX Runtime was built for"
                                               : "CUDA and cuDNN must be where the loader finds them";
  throw Error(Kind::provider, provider.name + " is not to be had",
              Problem{code::provider_unavailable,
                      provider.ort_name,
                      got,
                      {},
                      "the driver, a GPU or a library of the provider is missing",
                      "nvidia-smi shows the driver and the GPU; " + libraries + "; or ask for another provider"});
}

void add_whole(std::vector<Problem>& problems, const Provider& provider, const Manifest& manifest) {
  if (manifest.generation) problems.push_back(own_operator(provider, "generation", "GroupQueryAttention"));
  if (manifest.quantization) {
    const bool dynamic = manifest.quantization->method == "dynamic";
    problems.push_back(own_operator(provider, "quantization", dynamic ? "uint8 activations" : "MatMulNBits"));
  }
}

ProviderOptions with_defaults(const Provider& provider, const ProviderOptions& given) {
  ProviderOptions options = given;
  const auto add = [&](const char* key, const char* value) {
    const bool there =
        std::any_of(given.begin(), given.end(), [&](const auto& option) { return option.first == key; });
    if (!there) options.emplace_back(key, value);
  };
  add("device_id", "0");
  if (!provider.whole) add("use_tf32", "0");  // TF32 keeps ten bits of a fraction
  return options;
}

class Appender {
 public:
  Appender(const OrtLibrary& ort, const ProviderOptions& options) : ort_(ort) {
    for (const auto& [key, value] : options) {
      keys_.push_back(key.c_str());
      values_.push_back(value.c_str());
    }
  }

  void cuda(OrtSessionOptions* session) {
    OrtCUDAProviderOptionsV2* created = nullptr;
    ort_.check(ort_->CreateCUDAProviderOptions(&created));
    const OrtOwned<OrtCUDAProviderOptionsV2> owned(created, ort_->ReleaseCUDAProviderOptions);
    ort_.check(ort_->UpdateCUDAProviderOptions(created, keys_.data(), values_.data(), keys_.size()));
    ort_.check(ort_->SessionOptionsAppendExecutionProvider_CUDA_V2(session, created));
  }

  void tensorrt(OrtSessionOptions* session) {
    OrtTensorRTProviderOptionsV2* created = nullptr;
    ort_.check(ort_->CreateTensorRTProviderOptions(&created));
    const OrtOwned<OrtTensorRTProviderOptionsV2> owned(created, ort_->ReleaseTensorRTProviderOptions);
    ort_.check(ort_->UpdateTensorRTProviderOptions(created, keys_.data(), values_.data(), keys_.size()));
    ort_.check(ort_->SessionOptionsAppendExecutionProvider_TensorRT_V2(session, created));
  }

  void other(OrtSessionOptions* session, const char* name) {
    ort_.check(
        ort_->SessionOptionsAppendExecutionProvider(session, name, keys_.data(), values_.data(), keys_.size()));
  }

 private:
  const OrtLibrary& ort_;
  std::vector<const char*> keys_, values_;
};

}  // namespace

Provider provider_named(const std::string& name, const ProviderOptions& options) {
  const auto* const found =
      std::find_if(known().begin(), known().end(), [&](const Provider& provider) { return provider.name == name; });
  if (found == known().end()) {
    const bool native = name == "tensorrt";
    throw Error(Kind::provider, "unknown provider",
                Problem{code::provider_unavailable,
                        "'" + name + "'",
                        {},
                        "one of " + joined(known(), [](const Provider& provider) { return provider.name; }),
                        native ? "only the Python runtime runs an engine of the bundle" : "",
                        native ? "ask for ort-tensorrt, with which ONNX Runtime builds an engine"
                               : "ask for one of these"});
  }
  std::vector<Problem> problems;
  std::set<std::string> keys;
  for (const auto& [key, value] : options) {
    if (found->cpu()) {
      problems.push_back(
          Problem{code::bad_input, key, value, "no option of a provider", "cpu has none", "leave it out"});
    } else if (!keys.insert(key).second) {
      problems.push_back(Problem{code::bad_input, key, "an option that is given twice", "it once"});
    }
  }
  if (!problems.empty()) throw Error(Kind::request, "the engine is not opened", std::move(problems));
  return *found;
}

void check_provider(const OrtLibrary& ort, const Provider& provider, const Manifest& manifest) {
  std::vector<Problem> problems;
  if (provider.cpu() && manifest.dtype == Element::bf16) {
    problems.push_back(Problem{code::provider_unavailable,
                               "bf16 on cpu",
                               {},
                               {},
                               "ONNX Runtime has no bfloat16 kernels for the CPU",
                               "adexport build BUNDLE --dtype fp32 (or fp16), or ask for cuda"});
  }
  if (provider.whole) add_whole(problems, provider, manifest);
  if (!problems.empty()) {
    throw Error(Kind::provider, provider.name + " cannot run this bundle", std::move(problems));
  }
  const auto available = ort.providers();
  if (std::find(available.begin(), available.end(), provider.ort_name) == available.end()) {
    throw Error(Kind::provider, provider.name + " is not to be had",
                Problem{code::provider_unavailable,
                        provider.ort_name,
                        "onnxruntime " + ort.version() + " with " +
                            joined(available, [](const std::string& name) { return name; }),
                        {},
                        ort.path() + " was built without it",
                        "name a libonnxruntime that has it, or ask for another provider"});
  }
}

void append_provider(const OrtLibrary& ort, const Provider& provider, const ProviderOptions& options,
                     OrtSessionOptions* session) {
  if (provider.cpu()) return;  // it is always there
  // TensorRT rounds products of float32 to TF32 unless told so by the environment, before its first session
  if (provider.whole) setenv("NVIDIA_TF32_OVERRIDE", "0", 0);
  const auto all = with_defaults(provider, options);
  Appender appender(ort, all);
  try {
    if (provider.name == "cuda") {
      appender.cuda(session);
    } else if (provider.name == "ort-tensorrt") {
      appender.tensorrt(session);
    } else {
      appender.other(session, provider.ort_name.c_str());
    }
  } catch (const OrtFailure& failure) {
    const std::string message = failure.what();
    if (failure.code == ORT_INVALID_ARGUMENT || message.find("option") != std::string::npos) {
      throw Error(Kind::request, "the engine is not opened",
                  Problem{code::bad_input, "provider_options",
                          joined(all, [](const auto& option) { return option.first + "=" + option.second; }),
                          "options of " + provider.ort_name, message});
    }
    unavailable(provider, message);
  }
}

void check_places(const OrtLibrary& ort, const Provider& provider, const OrtSession* session) {
  constexpr std::uint32_t tells = 24;
  const OrtApi* api = ort.later(tells);
  if (provider.cpu() || api == nullptr) return;
  const OrtEpAssignedSubgraph* const* parts = nullptr;
  std::size_t count = 0;
  ort.check(api->Session_GetEpGraphAssignmentInfo(session, &parts, &count));
  std::set<std::string> elsewhere;
  for (std::size_t part = 0; part < count; ++part) {
    const char* place = nullptr;
    ort.check(api->EpAssignedSubgraph_GetEpName(parts[part], &place));
    if (provider.ort_name == place) continue;
    const OrtEpAssignedNode* const* nodes = nullptr;
    std::size_t size = 0;
    ort.check(api->EpAssignedSubgraph_GetNodes(parts[part], &nodes, &size));
    for (std::size_t node = 0; node < size; ++node) {
      const char* type = nullptr;
      ort.check(api->EpAssignedNode_GetOperatorType(nodes[node], &type));
      if (computing().count(type) != 0) elsewhere.emplace(type);
    }
  }
  if (elsewhere.empty()) return;
  std::vector<Problem> problems;
  problems.reserve(elsewhere.size());
  for (const auto& type : elsewhere) {
    problems.push_back(Problem{code::provider_unavailable, type, "a node on the CPU", provider.ort_name,
                               "this ONNX Runtime has no such kernel for the GPU, or not for this type",
                               "another precision (adexport build BUNDLE --dtype), no quantization, or a newer "
                               "ONNX Runtime"});
  }
  throw Error(Kind::provider, provider.name + " does not take this bundle whole", std::move(problems));
}

void refuse_session(const OrtLibrary& ort, const Provider& provider, const std::string& model,
                    const OrtFailure& failure) {
  constexpr std::array<OrtErrorCode, 4> of_graphs{ORT_NO_SUCHFILE, ORT_NO_MODEL, ORT_INVALID_PROTOBUF,
                                                  ORT_INVALID_GRAPH};
  if (provider.cpu() || std::find(of_graphs.begin(), of_graphs.end(), failure.code) != of_graphs.end()) {
    throw Error(Kind::bundle, model + " does not load",
                Problem{code::damaged,
                        model,
                        "ONNX Runtime " + ort.version() + ": " + failure.what(),
                        {},
                        "a graph of a newer opset than this ONNX Runtime knows, or a damaged file",
                        "use a newer ONNX Runtime, or build the bundle again"});
  }
  if (!provider.whole) unavailable(provider, failure.what());
  throw Error(Kind::provider, provider.name + " does not take this bundle",
              Problem{code::provider_unavailable,
                      provider.ort_name,
                      failure.what(),
                      {},
                      "an operator of model.onnx that this TensorRT does not have, or no memory to build with",
                      "ask for cuda; a float32 model built with --opset 22 has its attention in primitive "
                      "operators"});
}

}  // namespace adexport::core
