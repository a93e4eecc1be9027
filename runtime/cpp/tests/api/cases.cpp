#include "cases.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "safetensors.hpp"

namespace adexport::testing {

namespace {

template <class Value>
std::vector<Value> values_of(const core::TensorView& view) {
  std::vector<Value> values(view.bytes / sizeof(Value));
  if (!values.empty()) std::memcpy(values.data(), view.data, view.bytes);
  return values;
}

double distance(float one, float other) {
  if (std::isinf(one) || std::isinf(other)) return one == other ? 0 : std::numeric_limits<double>::infinity();
  return std::abs(static_cast<double>(one) - static_cast<double>(other));
}

}  // namespace

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts{""};
  for (const char letter : text) {
    if (letter == at) {
      parts.emplace_back();
    } else {
      parts.back() += letter;
    }
  }
  return parts;
}

std::filesystem::path test_folder() {
  const char* folder = std::getenv("ADEXPORT_TEST_BUNDLES");
  return folder != nullptr ? folder : "";
}

std::string bundle_path(const std::string& name) {
  return (test_folder() / (name + ".bundle")).string();
}

Case read_case(const std::filesystem::path& path) {
  const auto file = core::read_tensors(path);
  Case read;
  read.file = path.filename().string();
  read.metadata = file.metadata;
  read.bundle = (test_folder() / file.metadata.at("bundle")).string();
  for (const auto& name : split(file.metadata.at("adapters"), ',')) {
    read.adapters.push_back(name.empty() ? std::nullopt : std::optional<std::string>(name));
  }
  for (const auto& [name, view] : file.tensors) {
    Case::Array array{view.shape, {}, {}};
    if (view.dtype == "F32") {
      array.floats = values_of<float>(view);
    } else {
      array.integers = values_of<std::int64_t>(view);
    }
    read.arrays.emplace(name, std::move(array));
  }
  return read;
}

Case case_named(const std::string& name) {
  return read_case(test_folder() / "cases" / (name + ".safetensors"));
}

std::vector<std::string> run_cases() {
  std::vector<std::string> names;
  if (test_folder().empty()) return names;
  for (const auto& entry : std::filesystem::directory_iterator(test_folder() / "cases")) {
    const auto read = read_case(entry.path());
    if (!read.outputs().empty()) names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<Tensor> Case::inputs() const {
  std::vector<Tensor> given;
  for (const auto& [name, array] : arrays) {
    if (name.rfind("input.", 0) == 0) given.emplace_back(name.substr(6), array.integers, array.shape);
  }
  return given;
}

std::map<std::string, Case::Array> Case::outputs() const {
  std::map<std::string, Array> expected;
  for (const auto& [name, array] : arrays) {
    if (name.rfind("output.", 0) == 0) expected.emplace(name.substr(7), array);
  }
  return expected;
}

std::vector<std::vector<std::string>> Case::labels() const {
  std::vector<std::vector<std::string>> rows;
  for (const auto& row : split(metadata.at("labels"), ',')) {
    rows.push_back(row.empty() ? std::vector<std::string>{} : split(row, '|'));
  }
  return rows;
}

Options test_options() {
  Options options;
  options.threads = 1;
  const char* kernels = std::getenv("ADEXPORT_KERNELS");
  if (kernels == nullptr || *kernels == 0) options.kernels = "";
  return options;
}

Engine open_engine(const std::string& bundle) {
  return Engine::open(bundle_path(bundle), test_options());
}

double difference(const Outputs& outputs, const Case& expected) {
  const auto arrays = expected.outputs();
  EXPECT_EQ(outputs.size(), arrays.size());
  double most = 0;
  for (const auto& [name, array] : arrays) {
    const auto found = outputs[name];
    EXPECT_EQ(found.shape(), array.shape) << name;
    if (found.size() != array.floats.size()) return std::numeric_limits<double>::infinity();
    const auto& mask = expected.arrays.at("input.attention_mask");
    const bool tokens = array.shape.size() == 3 && array.shape[1] == mask.shape[1];
    const auto places = tokens ? mask.integers.size() : 1;
    const auto width = array.floats.size() / places;
    for (std::size_t at = 0; at < array.floats.size(); ++at) {
      if (tokens && mask.integers[at / width] == 0) continue;
      most = std::max(most, distance(found[at], array.floats[at]));
    }
  }
  const auto labels = expected.labels();
  for (std::size_t row = 0; row < labels.size(); ++row) EXPECT_EQ(outputs.labels(row), labels[row]) << row;
  return most;
}

}  // namespace adexport::testing
