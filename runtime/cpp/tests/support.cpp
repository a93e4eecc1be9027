#include "support.hpp"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace adexport::tests {

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "adexport.XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path TemporaryFolder::write(const std::string& name, const std::string& content) const {
  const std::filesystem::path path = path_ / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream file(path, std::ios::binary);
  file << content;
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
  return path;
}

std::string raw_safetensors(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string content(sizeof length, '\0');
  std::memcpy(content.data(), &length, sizeof length);
  return content + header + data;
}

std::string raw_safetensors(const Json& header, const std::string& data) {
  return raw_safetensors(header.dump(), data);
}

Json entry(const std::string& dtype, const Json& shape, std::int64_t begin, std::int64_t end) {
  return Json{{"dtype", dtype}, {"shape", shape}, {"data_offsets", Json::array({begin, end})}};
}

std::shared_ptr<const std::vector<std::byte>> bytes_of(const std::string& content) {
  const auto* start = reinterpret_cast<const std::byte*>(content.data());
  return std::make_shared<const std::vector<std::byte>>(start, start + content.size());
}

Tensor filled(std::vector<std::int64_t> shape, float value) {
  std::size_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  return {std::move(shape), std::vector<float>(count, value)};
}

std::string safetensors(const Tensors& tensors, const std::map<std::string, std::string>& metadata,
                        std::size_t padding) {
  Json header = Json::object();
  header["__metadata__"] = metadata;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const auto begin = static_cast<std::int64_t>(data.size());
    data.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * sizeof(float));
    header[name] = entry("F32", tensor.shape, begin, static_cast<std::int64_t>(data.size()));
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8 + padding, ' ');
  return raw_safetensors(text, data);
}

const Json removed = Json::parse("", nullptr, false);

void apply(Json& data, const Edit& edit) {
  const Json::json_pointer path(edit.path);
  if (edit.value.is_discarded()) {
    data[path.parent_pointer()].erase(path.back());
  } else {
    data[path] = edit.value;
  }
}

Culprits culprits(const core::Error& error) {
  Culprits found;
  for (const core::Problem& problem : error.problems()) found.emplace(problem.code, problem.subject);
  return found;
}

}  // namespace adexport::tests
