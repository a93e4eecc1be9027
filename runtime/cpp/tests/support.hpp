// What tests of several units need: temporary folders, safetensors files, manifests, and what an error says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace adexport::tests {

using Json = nlohmann::ordered_json;

// A fresh folder, removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // Write a file, and its folders; its path.
  std::filesystem::path write(const std::string& name, const std::string& content) const;

 private:
  std::filesystem::path path_;
};

// A safetensors file's bytes: a header as it is given, and data.
std::string raw_safetensors(const std::string& header, const std::string& data = {});
std::string raw_safetensors(const Json& header, const std::string& data = {});
// A header's entry.
Json entry(const std::string& dtype, const Json& shape, std::int64_t begin, std::int64_t end);
std::shared_ptr<const std::vector<std::byte>> bytes_of(const std::string& content);

// Float32 tensors and metadata, as a safetensors file has them.
struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;
// `value` everywhere.
Tensor filled(std::vector<std::int64_t> shape, float value = 0.5F);
// `padding`: spaces behind the header, which move the data.
std::string safetensors(const Tensors& tensors, const std::map<std::string, std::string>& metadata,
                        std::size_t padding = 0);

// Manifests of small bundles: with linear slots, with slots of every kind, with caches.
Json lora_manifest();
Json every_slot_manifest();
Json generation_manifest();
// The fingerprint that they have.
std::string fingerprint();

// A change of a document; a value that is `removed` takes the key away.
struct Edit {
  const char* path;
  Json value;
  const char* subject = "";  // where the error must say that it is
};
extern const Json removed;
void apply(Json& data, const Edit& edit);

// Codes and subjects of an error's problems.
using Culprits = std::set<std::pair<std::string, std::string>>;
Culprits culprits(const core::Error& error);

// The error that `call` throws; none if it throws none.
template <class Call>
std::optional<core::Error> error_of(Call call) {
  try {
    call();
  } catch (const core::Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace adexport::tests
