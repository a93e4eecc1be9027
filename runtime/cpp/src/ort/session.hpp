// Sessions of ONNX Runtime, with the settings that measured best and the checks that a bundle needs.
#pragma once

#include <filesystem>
#include <string>

#include "manifest.hpp"
#include "ort/library.hpp"
#include "ort/providers.hpp"

namespace adexport::core {

struct SessionSettings {
  Provider provider;
  ProviderOptions options;
  int threads = 0;  // of one operator on the CPU; 0: ONNX Runtime chooses
  bool spin = true;
  std::string kernels;    // the library of operators to register; empty: none
  std::string optimized;  // where to write the graph as it runs; empty: nowhere
};

// A graph that runs.
struct OrtOpened {
  const OrtLibrary& ort;
  Provider provider;
  OrtOwned<OrtSession> session;
};

// Throws Kind::bundle for a graph that does not load or is not its manifest's, Kind::provider where it
// cannot run, Kind::request for options, Kind::dependency for `kernels` that do not load.
OrtOpened open_session(const OrtLibrary& ort, const std::filesystem::path& model, const Manifest& manifest,
                       const SessionSettings& settings);

}  // namespace adexport::core
