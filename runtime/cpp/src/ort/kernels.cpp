#include "ort/kernels.hpp"

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

constexpr const char* kernels_variable = "ADEXPORT_KERNELS";
constexpr const char* kernels_file = "libadexport_kernels.so";
constexpr const char* without = "none";  // as the Python runtime has it, which reads the same variable

bool is_file(const std::filesystem::path& path) {
  std::error_code unreadable;
  return std::filesystem::is_regular_file(path, unreadable);
}

[[noreturn]] void refuse(Problem problem) {
  throw Error(Kind::dependency, "the kernel library is not to be had", std::move(problem));
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
    refuse({code::package_missing, *wanted, "no such file", kernels_file,
            std::string("kernels, or $") + kernels_variable + ", names it",
            "name the file, or none (kernels: \"\")"});
  }
  return std::filesystem::absolute(*wanted).string();
}

void check_kernels(const std::string& path) {
  constexpr const char* mend = "build and install it again (make native), or go without (none)";
  const auto close = [](void* handle) { dlclose(handle); };
  const std::unique_ptr<void, decltype(close)> library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), close);
  const auto function = [&](const char* name) { return library ? dlsym(library.get(), name) : nullptr; };
  if (function("adexport_kernels_version") == nullptr) {
    const char* reason = dlerror();
    refuse({code::package_missing, path, reason != nullptr ? reason : "no functions of it", kernels_file,
            "built for another machine, or no kernel library", mend});
  }
  void* asked = function("adexport_kernels_interface");
  const auto found = asked == nullptr ? 0 : reinterpret_cast<std::int32_t (*)()>(asked)();
  if (found == ADEXPORT_KERNELS_INTERFACE) return;
  refuse({code::version, path, asked == nullptr ? "no interface number" : "interface " + std::to_string(found),
          "interface " + std::to_string(ADEXPORT_KERNELS_INTERFACE), "built by another version of adexport", mend});
}

}  // namespace adexport::core
