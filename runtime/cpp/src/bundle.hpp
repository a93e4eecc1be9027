// A bundle on disk: open it, check the sizes of its files, list the adapters bound into it.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "manifest.hpp"

namespace adexport::core {

struct Bundle {
  std::filesystem::path root;
  Manifest manifest;

  // Errors are of Kind::bundle.
  static Bundle open(const std::filesystem::path& root);

  [[nodiscard]] std::filesystem::path model_path() const { return root / "model.onnx"; }
  // Where the adapter bound under `name` lies, whether or not it is there; the name is checked.
  [[nodiscard]] std::filesystem::path adapter_path(const std::string& name) const;
  [[nodiscard]] std::map<std::string, std::filesystem::path> adapters() const;
};

// Throws an Error of Kind::adapter unless it is a valid adapter name.
void check_name(const std::string& name);

}  // namespace adexport::core
