#include "ort/kernels.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "errors.hpp"

namespace adexport::core {

namespace {

constexpr const char* kernels_variable = "ADEXPORT_KERNELS";
constexpr const char* kernels_file = "libadexport_kernels.so";
constexpr const char* without = "none";  // as the Python runtime has it

bool is_file(const std::filesystem::path& path) {
  std::error_code unreadable;
  return std::filesystem::is_regular_file(path, unreadable);
}

// Beside the library that this code is in.
std::filesystem::path beside() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&find_kernels), &info) == 0 || info.dli_fname == nullptr) return {};
  return std::filesystem::path(info.dli_fname).parent_path() / kernels_file;
}

}  // namespace

std::string find_kernels(const std::optional<std::string>& named) {
  auto wanted = named;
  if (!wanted) {
    const char* variable = std::getenv(kernels_variable);
    if (variable != nullptr && *variable != '\0') wanted = variable;
  }
  if (!wanted) {
    const auto path = beside();
    // with its folder: the loader would search for a name alone
    return !path.empty() && is_file(path) ? std::filesystem::absolute(path).string() : std::string();
  }
  if (wanted->empty() || *wanted == without) return {};
  if (!is_file(*wanted)) {
    throw Error(Kind::dependency, "the operators for ONNX Runtime are not to be had",
                Problem{code::package_missing, *wanted, "no such file", kernels_file,
                        std::string("kernels, or $") + kernels_variable + ", names it",
                        "name the library itself, or none"});
  }
  return std::filesystem::absolute(*wanted).string();
}

}  // namespace adexport::core
