#include "ort/session.hpp"

#include "errors.hpp"
#include "ort/graph.hpp"
#include "ort/kernels.hpp"
#include "ort/saturation.hpp"

namespace adexport::core {

namespace {

// Fusions that make the CPU slower (see BENCHMARKS.md).
constexpr const char* slow_on_cpu = "SkipLayerNormFusion;BiasGeluFusion";

void register_kernels(const OrtLibrary& ort, OrtSessionOptions* options, const std::string& path) {
  check_kernels(path);
  try {
    ort.check(ort->RegisterCustomOpsLibrary_V2(options, path.c_str()));
  } catch (const OrtFailure& failure) {
    throw Error(Kind::dependency, "the kernel library is not to be had",
                Problem{code::package_missing, path, "ONNX Runtime " + ort.version() + ": " + failure.what(),
                        "libadexport_kernels", "another library, or one that was built for another system",
                        "install it again, or go without (none)"});
  }
}

void configure(const OrtLibrary& ort, OrtSessionOptions* options, const Manifest& manifest,
               const SessionSettings& settings) {
  const auto set = [&](const char* key, const char* value) {
    ort.check(ort->AddSessionConfigEntry(options, key, value));
  };
  ort.check(ort->SetIntraOpNumThreads(options, settings.threads));
  ort.check(ort->SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR));
  set("session.intra_op.allow_spinning", settings.spin ? "1" : "0");
  if (!settings.optimized.empty()) {
    ort.check(ort->SetOptimizedModelFilePath(options, settings.optimized.c_str()));
  }
  if (settings.provider.cpu()) {
    set("optimization.disable_specified_optimizers", slow_on_cpu);
    // else products with weights behind DequantizeLinear would take int8 activations
    set("session.qdq_matmulnbits_accuracy_level", "1");
    const bool integers = manifest.quantization && manifest.quantization->method == "dynamic";
    if (integers && saturates(ort)) set("session.x64quantprecision", "1");
    if (!settings.kernels.empty()) register_kernels(ort, options, settings.kernels);
    return;
  }
  set("session.record_ep_graph_assignment_info", "1");
  // what TensorRT left would split its engine; CUDA leaves arithmetic with sizes to the CPU on purpose
  if (settings.provider.whole) set("session.disable_cpu_ep_fallback", "1");
}

}  // namespace

OrtOpened open_session(const OrtLibrary& ort, const std::filesystem::path& model, const Manifest& manifest,
                       const SessionSettings& settings) {
  check_provider(ort, settings.provider, manifest);
  OrtSession* session = nullptr;
  try {
    OrtSessionOptions* created = nullptr;
    ort.check(ort->CreateSessionOptions(&created));
    const OrtOwned<OrtSessionOptions> options(created, ort->ReleaseSessionOptions);
    configure(ort, created, manifest, settings);
    append_provider(ort, settings.provider, settings.options, created);
    ort.check(ort->CreateSession(ort.env(), model.c_str(), created, &session));
  } catch (const OrtFailure& failure) {
    refuse_session(ort, settings.provider, model.string(), failure);
  }
  OrtOpened opened{ort, settings.provider, {session, ort->ReleaseSession}};
  check_places(ort, settings.provider, session);
  check_graph(ort, session, model.string(), manifest);
  return opened;
}

}  // namespace adexport::core
