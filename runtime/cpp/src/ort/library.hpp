// ONNX Runtime, loaded when it is first needed and kept for the life of the process.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

namespace adexport::core {

// The version of the C interface that is used: that of ONNX Runtime 1.23.
inline constexpr std::uint32_t ort_api_version = 23;

// What a call of ONNX Runtime failed with.
class OrtFailure : public std::runtime_error {
 public:
  OrtFailure(OrtErrorCode failed, const char* message) : std::runtime_error(message), code(failed) {}
  OrtErrorCode code;
};

// Owns an object of ONNX Runtime.
template <class T>
using OrtOwned = std::unique_ptr<T, void (*)(T*)>;

class OrtLibrary {
 public:
  // `path`, else $ADEXPORT_ORT_LIBRARY, else what the loader finds. Throws Kind::dependency.
  static const OrtLibrary& load(const std::optional<std::string>& path);

  OrtLibrary(const OrtLibrary&) = delete;
  OrtLibrary& operator=(const OrtLibrary&) = delete;

  [[nodiscard]] const OrtApi* operator->() const { return api_; }
  // A later version of the interface; null if the library is older.
  [[nodiscard]] const OrtApi* later(std::uint32_t version) const;
  [[nodiscard]] OrtEnv* env() const { return env_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const std::string& version() const { return version_; }
  // The providers that it was built with, by ONNX Runtime's names.
  [[nodiscard]] std::vector<std::string> providers() const;

  // Throws OrtFailure unless `status` is null.
  void check(OrtStatus* status) const;

 private:
  OrtLibrary(void* handle, std::string path);

  const OrtApiBase* base_ = nullptr;
  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
  std::string path_;
  std::string version_;
};

}  // namespace adexport::core
