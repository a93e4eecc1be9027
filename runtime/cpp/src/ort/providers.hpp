// The providers by adexport's names, and what ONNX Runtime's are told.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "manifest.hpp"
#include "ort/library.hpp"

namespace adexport::core {

using ProviderOptions = std::vector<std::pair<std::string, std::string>>;

struct Provider {
  std::string name;      // adexport's: "cpu", "cuda", …
  std::string ort_name;  // ONNX Runtime's: "CPUExecutionProvider", …
  bool whole = false;    // it takes a graph whole, or not at all
  [[nodiscard]] bool cpu() const { return name == "cpu"; }
};

// Throws Kind::provider for a name that is none, and Kind::request for options that no provider takes.
Provider provider_named(const std::string& name, const ProviderOptions& options);
// Throws Kind::provider unless the library has the provider, and it can run the bundle.
void check_provider(const OrtLibrary& ort, const Provider& provider, const Manifest& manifest);
// Throws Kind::request for options that it does not take, Kind::provider where it does not start.
void append_provider(const OrtLibrary& ort, const Provider& provider, const ProviderOptions& options,
                     OrtSessionOptions* session);
// No node that computes may be on the CPU. Before ONNX Runtime 1.24 a session does not tell.
void check_places(const OrtLibrary& ort, const Provider& provider, const OrtSession* session);
// Why a session did not open on a provider for GPUs.
[[noreturn]] void refuse_session(const OrtLibrary& ort, const Provider& provider, const std::string& model,
                                 const OrtFailure& failure);

}  // namespace adexport::core
