#include "generation.hpp"

#include <algorithm>
#include <map>

namespace adexport::core {
namespace {

using schema::Fields;
using schema::Violations;

Cache read_cache(const json::Value& value, const std::string& where, Violations& found) {
  Cache cache;
  Fields fields(value, where, found);
  fields.take("past_key", cache.past_key, schema::read_text);
  fields.take("past_value", cache.past_value, schema::read_text);
  fields.take("present_key", cache.present_key, schema::read_text);
  fields.take("present_value", cache.present_value, schema::read_text);
  fields.take("kv_heads", cache.kv_heads, schema::read_positive);
  fields.take("size", cache.size, schema::read_positive);
  fields.take("window", cache.window, schema::or_null(schema::read_positive));
  fields.close();
  return cache;
}

}  // namespace

Generation read_generation(const json::Value& value, const std::string& where, Violations& found) {
  Generation generation;
  Fields fields(value, where, found);
  fields.take("lengths", generation.lengths, schema::read_text);
  fields.take("past_lengths", generation.past_lengths, schema::read_text);
  fields.take("logits_at", generation.logits_at, schema::read_text);
  fields.take("caches", generation.caches, schema::list_of(read_cache));
  fields.take("eos_ids", generation.eos_ids, schema::list_of(schema::read_natural));
  fields.close();
  return generation;
}

Quantization read_quantization(const json::Value& value, const std::string& where, Violations& found) {
  Quantization quantization;
  Fields fields(value, where, found);
  fields.take("method", quantization.method, schema::Choice{"weight-only", "dynamic"});
  fields.take("bits", quantization.bits, schema::NumberChoice{4, 8});
  fields.take("block_size", quantization.block_size, schema::or_null(schema::read_positive));
  fields.take("accuracy_level", quantization.accuracy_level, schema::or_null(schema::read_positive));
  fields.take("embeddings", quantization.embeddings, schema::read_flag);
  fields.take("lm_head", quantization.lm_head, schema::read_flag);
  fields.close();
  return quantization;
}

std::vector<std::string> inputs_of(const Generation& generation) {
  std::vector<std::string> names = {generation.lengths, generation.past_lengths, generation.logits_at};
  for (const Cache& cache : generation.caches) names.insert(names.end(), {cache.past_key, cache.past_value});
  return names;
}

Faults faults_of(const Generation& generation) {
  Faults wrong;
  if (generation.caches.empty()) wrong.emplace_back("generation needs caches");
  std::vector<std::string> names = inputs_of(generation);
  for (const Cache& cache : generation.caches) names.insert(names.end(), {cache.present_key, cache.present_value});
  std::map<std::string, int> counted;
  for (const std::string& name : names) ++counted[name];
  for (const std::string& name : names) {  // in the order of the graph, each once
    int& times = counted[name];
    if (times > 1) wrong.push_back(name + " is listed twice in generation");
    times = 0;
  }
  return wrong;
}

Faults faults_of(const Quantization& quantization) {
  const bool dynamic = quantization.method == "dynamic";
  Faults wrong;
  if (dynamic && quantization.bits != 8) wrong.emplace_back("dynamic quantization has 8 bits");
  if (dynamic == quantization.accuracy_level.has_value()) {
    wrong.emplace_back("an accuracy_level belongs to weight-only quantization, and must be there");
  }
  if (quantization.block_size.has_value() == (dynamic && !quantization.embeddings)) {
    wrong.emplace_back("a block_size belongs to weight-only quantization and to embeddings");
  }
  return wrong;
}

Faults generation_faults(const Manifest& manifest) {
  if (!manifest.generation.has_value()) return {};
  std::map<std::string, const Input*> offered;
  for (const Input& input : manifest.inputs) offered[input.name] = &input;
  const auto ids = offered.find("input_ids");
  Faults wrong;
  const auto check = [&](bool fault, std::string words) {
    if (fault) wrong.push_back(std::move(words));
  };
  check(manifest.task != "text-generation", "generation belongs to text-generation alone");
  check(manifest.format_version < 3,
        "generation is not known to version " + std::to_string(manifest.format_version));
  check(!manifest.max_positions.has_value(), "generation needs max_positions");
  check(offered.size() != 2 || ids == offered.end() || offered.count("attention_mask") == 0,
        "generation needs the inputs input_ids and attention_mask alone");
  check(ids != offered.end() && !ids->second->high.has_value(), "generation needs the high of input_ids");
  check(manifest.outputs.size() != 1 || manifest.outputs.front().name != "logits",
        "generation needs the output logits alone");
  return wrong;
}

}  // namespace adexport::core
