// safetensors files, read strictly: no holes, no overlaps, no repeated keys, nothing left over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace adexport::core {

// A tensor's bytes in a file that is held in memory.
struct TensorView {
  std::string dtype;  // as in the file: "F32", "BF16", …
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;

  [[nodiscard]] std::size_t count() const;
};

// The content of one file, read whole (not mapped: a file that shrinks meanwhile would end the process).
struct TensorFile {
  std::filesystem::path path;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> metadata;
  std::shared_ptr<const std::vector<std::byte>> content;
};

// Errors are of Kind::adapter, with the codes of adexport_runtime.tensors.read_tensors.
TensorFile read_tensors(const std::filesystem::path& path);
// The same from memory; `path` is for messages. What fuzzers call.
TensorFile parse_tensors(std::shared_ptr<const std::vector<std::byte>> content, const std::filesystem::path& path);

}  // namespace adexport::core
