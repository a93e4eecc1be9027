// The engine: a bundle, its bank of adapters, and a backend; one adapter for each row.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "bank.hpp"
#include "bundle.hpp"
#include "generation/generate.hpp"
#include "ort/providers.hpp"
#include "outputs.hpp"
#include "request.hpp"

namespace adexport::core {

class BatchRows;

struct EngineSettings {
  std::string provider = "cpu";
  std::optional<std::string> ort_library;
  std::optional<std::string> kernels;  // "": without
  std::int64_t rows = 0;               // adapters resident at once; 0: as many as are bound
  std::int32_t threads = 0;            // of one operator on the CPU; 0: ONNX Runtime chooses
  bool spin = true;
  ProviderOptions provider_options;
};

// Runs one frozen base for many tenants. Safe to use from several threads.
class Engine {
 public:
  // Open a bundle, with the adapters that were bound into it; their files are read when first asked for.
  static std::unique_ptr<Engine> open(const std::filesystem::path& bundle, const EngineSettings& settings);

  [[nodiscard]] std::string provider() const { return backend_->provider(); }
  [[nodiscard]] const std::string& ort_version() const { return ort_version_; }
  [[nodiscard]] const std::string& kernels() const { return kernels_; }
  [[nodiscard]] const Manifest& manifest() const { return bundle_.manifest; }

  // `path`: the file of a bound adapter; none: the bundle's own of that name.
  void bind(const std::string& name, const std::optional<std::filesystem::path>& path);
  void unbind(const std::string& name);
  // Sorted.
  [[nodiscard]] std::vector<std::string> adapters() const;

  Outputs run(const std::vector<Feed>& inputs, const Adapters& adapters);

  // See generation/generate.hpp.
  std::vector<Generated> generate(const std::vector<Prompt>& prompts, const Sampling& sampling,
                                  std::size_t max_batch, const OnToken& on_token);

 private:
  Engine(Bundle bundle, std::unique_ptr<Backend> backend, std::int64_t rows);

  [[nodiscard]] RowTensors load(const std::filesystem::path& path) const;
  Outputs run_once(Inputs inputs, const Adapters& names);
  // The logits at every position of prompts, with caches that are thrown away.
  Outputs run_prompts(const Inputs& inputs, const Adapters& names);
  void put_adapter(BatchRows& rows, std::int64_t row, const std::string& name);
  [[nodiscard]] std::vector<Labels> labels(const Adapters& names, const Lease& lease) const;

  Bundle bundle_;
  std::string ort_version_;
  std::string kernels_;
  std::unique_ptr<Backend> backend_;
  Bank bank_;
};

}  // namespace adexport::core
