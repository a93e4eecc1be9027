// Writes small files for fuzzers to start from: make_seeds FOLDER
#include <filesystem>
#include <fstream>
#include <string>

#include "bound.hpp"
#include "support.hpp"

namespace {

using adexport::tests::filled;
using adexport::tests::Json;
using adexport::tests::Tensors;

void write(const std::filesystem::path& path, const std::string& content) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

void write_manifest(const std::filesystem::path& path, const Json& manifest) {
  adexport::core::parse_manifest(manifest.dump());
  write(path, manifest.dump());
}

void write_manifests(const std::filesystem::path& folder) {
  Json quantized = adexport::tests::lora_manifest();
  quantized["base"]["quantization"] = {{"method", "weight-only"}, {"bits", 8},           {"block_size", 32},
                                       {"accuracy_level", 4},     {"embeddings", false}, {"lm_head", true}};
  write_manifest(folder / "lora", adexport::tests::lora_manifest());
  write_manifest(folder / "every-slot", adexport::tests::every_slot_manifest());
  write_manifest(folder / "generation", adexport::tests::generation_manifest());
  write_manifest(folder / "quantized", quantized);
}

void write_tensors(const std::filesystem::path& folder) {
  write(folder / "two", adexport::tests::safetensors({{"a", filled({1})}, {"b.c", filled({2, 1})}}, {{"k", "v"}}));
  const Json types = {{"a", adexport::tests::entry("F4", {2}, 0, 1)},
                      {"b", adexport::tests::entry("I8", {1}, 1, 2)}};
  write(folder / "types", adexport::tests::raw_safetensors(types, "xy"));
  write(folder / "pickle", "\x80\x04\x95");
  write(folder / "pointer", "version https://git-lfs.github.com/spec/v1\n");
}

// A file without its first 8 bytes, as fuzz_bound takes it.
std::string headless(const Tensors& tensors, const std::string& bottleneck, const std::string& head) {
  std::map<std::string, std::string> metadata = {{"format", "adexport-adapter"},
                                                 {"format_version", "2"},
                                                 {"name", "a"},
                                                 {"source_type", "x"},
                                                 {"source_sha256", "0"},
                                                 {"base_fingerprint", adexport::tests::fingerprint()},
                                                 {"rank", "1"}};
  if (!bottleneck.empty()) metadata["bottleneck"] = bottleneck;
  if (!head.empty()) metadata["head"] = head;
  const std::string whole = adexport::tests::safetensors(tensors, metadata);
  // A seed that is refused would lead nowhere: this throws, and the build fails.
  adexport::core::check_bound(adexport::core::parse_tensors(adexport::tests::bytes_of(whole), "seed"),
                              adexport::core::parse_manifest(adexport::tests::every_slot_manifest().dump()));
  std::string content = whole.substr(8);
  const std::size_t data = content.rfind('}') + 1;
  content.replace(data, content.find_first_not_of(' ', data) - data, std::string(1, '\0'));
  return content;
}

void write_bound(const std::filesystem::path& folder) {
  const std::string query = "layer.0.query", stem = "layer.0.out.bottleneck.";
  Tensors linear = {
      {query + ".lora_A", filled({4, 1})}, {query + ".lora_B", filled({1, 4})}, {query + ".scale_in", filled({4})}};
  write(folder / "linear", headless(linear, "", ""));
  Tensors bottleneck = {{stem + "down", filled({4, 1})},
                        {stem + "down_bias", filled({1})},
                        {stem + "up", filled({1, 4})},
                        {stem + "up_bias", filled({4})}};
  write(folder / "bottleneck", headless(bottleneck, R"({"form": {}, "activation": "relu"})", ""));
  Tensors head = {{"adapter_head.out", filled({4, 1})}, {"adapter_head.out_bias", filled({1})}};
  write(folder / "head", headless(head, "", R"({"feature": "first", "activation": null, "labels": ["a"]})"));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const std::filesystem::path folder = arguments[1];
  write_manifests(folder / "manifest");
  write_tensors(folder / "tensors");
  write_bound(folder / "bound");
  return 0;
}
