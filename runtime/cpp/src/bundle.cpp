#include "bundle.hpp"

#include <sys/stat.h>

#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "files.hpp"

namespace adexport::core {
namespace {

constexpr const char* suffix = ".safetensors";

// As the bytes are counted; none if there is nothing to count.
std::optional<std::int64_t> size_of_file(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return static_cast<std::int64_t>(status.st_size);
}

}  // namespace

Bundle Bundle::open(const std::filesystem::path& root) {
  const std::string headline = root.string() + " is refused as a bundle";
  const std::filesystem::path path = root / "manifest.json";
  std::string text;
  if (const auto reason = read_whole(path, text)) {
    throw Error(Kind::bundle, headline,
                Problem{code::absent,
                        path.string(),
                        *reason,
                        {},
                        "not a folder that `adexport build` wrote",
                        "adexport build MODEL -o BUNDLE"});
  }
  Bundle bundle{root, parse_manifest(std::move(text), path.string())};
  std::vector<Problem> problems;
  for (const File& file : bundle.manifest.files) {
    const auto size = size_of_file(root / file.path);
    if (size == file.bytes) continue;
    problems.push_back({code::damaged, file.path, size.has_value() ? std::to_string(*size) + " bytes" : "no file",
                        std::to_string(file.bytes) + " bytes", "an incomplete copy of the bundle",
                        "copy or build the bundle again"});
  }
  if (!problems.empty()) throw Error(Kind::bundle, headline, std::move(problems));
  return bundle;
}

std::filesystem::path Bundle::adapter_path(const std::string& name) const {
  check_name(name);
  return root / "adapters" / (name + suffix);
}

std::map<std::string, std::filesystem::path> Bundle::adapters() const {
  std::map<std::string, std::filesystem::path> found;
  std::error_code none;
  for (std::filesystem::directory_iterator entry(root / "adapters", none), end; !none && entry != end;
       entry.increment(none)) {
    const std::filesystem::path& path = entry->path();
    // What starts with a dot is a leftover of an interrupted writer.
    if (path.extension() == suffix && path.filename().string().front() != '.')
      found.emplace(path.stem().string(), path);
  }
  return found;
}

}  // namespace adexport::core
