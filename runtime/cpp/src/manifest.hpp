// The bundle's contract (runtime/FORMAT.md): manifest.json as validated values.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "element.hpp"

namespace adexport::core {

// A size in a shape: a number, or the name of a ragged one.
using Size = std::variant<std::int64_t, std::string>;

// A graph input that carries one factor of a slot; `shape` starts with the rows.
struct SlotInput {
  std::string name;
  std::vector<Size> shape;
  bool ones = false;             // the identity
  std::optional<Element> dtype;  // none: the bundle's own; 16 bits under float32, or int64
};

// Factors by their name in the slot ("lora_A", …), in the manifest's order; absent ones are not there.
using Factors = std::vector<std::pair<std::string, SlotInput>>;
const SlotInput* find(const Factors& factors, std::string_view name);

struct Site {
  std::string path, weight;
  std::optional<std::string> bias;
  std::int64_t in_features = 0, out_features = 0;
  Factors linear;
};

struct BottleneckForm {
  std::string input = "hidden", skip = "hidden", norm_after = "none";
  bool close = true, norm_before = false;
  bool operator==(const BottleneckForm& other) const;
};

struct BottleneckStyle {
  BottleneckForm form;
  std::string activation;
};

struct BottleneckSite {
  std::string path, location;
  std::int64_t layer = 0, features = 0;
  bool normed = false;
  Factors slot;
};

struct Bottlenecks {
  std::vector<BottleneckForm> forms;
  std::vector<std::string> activations;
  std::vector<BottleneckSite> sites;
  // None if the bundle does not take it.
  [[nodiscard]] std::optional<std::int64_t> code(const BottleneckStyle& style) const;
};

struct HeadStyle {
  std::string feature;
  std::optional<std::string> activation;
  std::vector<std::string> labels;
};

struct Head {
  std::int64_t features = 0;
  std::vector<std::string> inputs, activations;
  Factors slot;
  [[nodiscard]] std::optional<std::int64_t> code(const HeadStyle& style) const;
};

struct Input {
  std::string name;
  Element dtype = Element::int64;
  std::vector<Size> shape;
  std::optional<std::int64_t> low, high, fill;
};

struct Output {
  std::string name;
  Element dtype = Element::fp32;
  std::vector<Size> shape;
};

struct Cache {
  std::string past_key, past_value, present_key, present_value;
  std::int64_t kv_heads = 0, size = 0;
  std::optional<std::int64_t> window;
};

struct Generation {
  std::string lengths, past_lengths, logits_at;
  std::vector<Cache> caches;
  std::vector<std::int64_t> eos_ids;
};

struct Quantization {
  std::string method;
  std::int64_t bits = 0;
  std::optional<std::int64_t> block_size, accuracy_level;
  bool embeddings = false, lm_head = false;
};

struct File {
  std::string path;
  std::int64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  int format_version = 0;
  std::string base_name, architecture, model_type, prefix, task, fingerprint;
  Element dtype = Element::fp32;
  std::optional<Quantization> quantization;
  std::optional<std::int64_t> max_positions;
  std::vector<std::string> base_labels;
  std::vector<std::string> slots;  // kinds
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  std::optional<std::string> adapter_ids;
  std::vector<Site> sites;
  std::optional<Bottlenecks> bottlenecks;
  std::optional<Head> head;
  Factors guards;           // "linear", "bottleneck"; empty without
  bool batch_rows = false;  // slot_rows is "batch"
  std::optional<Generation> generation;
  std::int64_t max_rank = 0;
  std::optional<std::int64_t> max_width;
  std::vector<File> files;
  std::string text;  // manifest.json as it is on disk

  // All slot inputs: those of the sites, of the bottleneck sites, of the head, guards; in graph order.
  std::vector<SlotInput> slot_inputs;
  [[nodiscard]] Element element(const SlotInput& slot) const { return slot.dtype.value_or(dtype); }
};

// Validate a whole manifest. Errors are of Kind::bundle and name every violation; `where` is for messages.
Manifest parse_manifest(std::string text, const std::string& where = "manifest.json");

}  // namespace adexport::core
