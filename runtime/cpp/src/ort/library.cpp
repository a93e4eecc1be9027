#include "ort/library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "errors.hpp"

namespace adexport::core {

namespace {

constexpr const char* library_variable = "ADEXPORT_ORT_LIBRARY";
constexpr const char* mend =
    "name libonnxruntime.so of ONNX Runtime 1.23 or later (ort_library, or $ADEXPORT_ORT_LIBRARY)";

[[noreturn]] void refuse(std::vector<Problem> problems) {
  throw Error(Kind::dependency, "ONNX Runtime is needed", std::move(problems));
}

[[noreturn]] void refuse(const std::string& path, std::string got, std::string expected = {}) {
  refuse({Problem{code::package_missing, path, std::move(got), std::move(expected), {}, mend}});
}

std::string loader_error() {
  const char* text = dlerror();
  return text != nullptr ? text : "no such library";
}

// Where the loader found a symbol; the name that was asked for if it does not say.
std::string place_of(void* symbol, const std::string& asked) {
  Dl_info info{};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : asked;
}

void* open_library(const std::vector<std::string>& names, std::string& opened) {
  std::vector<Problem> problems;
  for (const auto& name : names) {
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      opened = name;
      return handle;
    }
    problems.push_back(Problem{code::package_missing, name, loader_error(), {}, {}, mend});
  }
  refuse(std::move(problems));
}

std::vector<std::string> wanted_names(const std::optional<std::string>& path) {
  if (path && path->empty()) refuse("ort_library", "an empty path", "a library of ONNX Runtime");
  if (path) return {*path};
  if (const char* named = std::getenv(library_variable); named != nullptr && *named != '\0') return {named};
  return {"libonnxruntime.so.1", "libonnxruntime.so"};
}

}  // namespace

const OrtLibrary& OrtLibrary::load(const std::optional<std::string>& path) {
  // never freed: threads of ONNX Runtime may outlive what main() destroys
  static auto& lock = *new std::mutex;
  static auto& loaded = *new std::map<void*, std::unique_ptr<OrtLibrary>>;
  const std::scoped_lock guard(lock);
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // it is read while the library loads
  std::string opened;
  void* handle = open_library(wanted_names(path), opened);
  auto found = loaded.find(handle);
  if (found != loaded.end()) {
    dlclose(handle);  // the second count of the same library
    return *found->second;
  }
  std::unique_ptr<OrtLibrary> library(new OrtLibrary(handle, opened));
  return *loaded.emplace(handle, std::move(library)).first->second;
}

OrtLibrary::OrtLibrary(void* handle, std::string path) : path_(std::move(path)) {
  void* symbol = dlsym(handle, "OrtGetApiBase");
  if (symbol == nullptr) refuse(path_, loader_error(), "a library of ONNX Runtime");
  path_ = place_of(symbol, path_);
  base_ = reinterpret_cast<const OrtApiBase* (*)()>(symbol)();
  version_ = base_->GetVersionString();
  api_ = base_->GetApi(ort_api_version);
  if (api_ == nullptr) refuse(path_, "ONNX Runtime " + version_, "ONNX Runtime 1.23 or later");
  try {
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "adexport", &env_));
    check(api_->DisableTelemetryEvents(env_));
  } catch (const OrtFailure& failure) {
    refuse(path_, "ONNX Runtime " + version_ + ": " + failure.what());
  }
}

const OrtApi* OrtLibrary::later(std::uint32_t version) const {
  // GetApi prints to stderr where the library is older, so it is asked only where it is not
  char* rest = nullptr;
  const auto major = std::strtoul(version_.c_str(), &rest, 10);
  const auto minor = *rest == '.' ? std::strtoul(rest + 1, nullptr, 10) : 0;
  return major > 1 || minor >= version ? base_->GetApi(version) : nullptr;
}

std::vector<std::string> OrtLibrary::providers() const {
  char** names = nullptr;
  int count = 0;
  check(api_->GetAvailableProviders(&names, &count));
  std::vector<std::string> found(names, names + count);
  check(api_->ReleaseAvailableProviders(names, count));
  return found;
}

void OrtLibrary::check(OrtStatus* status) const {
  if (status == nullptr) return;
  const OrtOwned<OrtStatus> owned(status, api_->ReleaseStatus);
  throw OrtFailure(api_->GetErrorCode(status), api_->GetErrorMessage(status));
}

}  // namespace adexport::core
