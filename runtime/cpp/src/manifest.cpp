#include "manifest.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "errors.hpp"
#include "generation.hpp"
#include "slots.hpp"

namespace adexport::core {
namespace {

using schema::Choice;
using schema::Fields;
using schema::list_of;
using schema::or_null;
using schema::Violations;

constexpr const char* mend_bundle = "build the bundle again";

Element read_dtype(const json::Value& value, const std::string& where, Violations& found) {
  static const Choice names{"fp32", "fp16", "bf16", "int64", "int32"};
  return *element_named(names(value, where, found));
}

Element read_float_dtype(const json::Value& value, const std::string& where, Violations& found) {
  static const Choice names{"fp32", "fp16", "bf16"};
  return *element_named(names(value, where, found));
}

Input read_input(const json::Value& value, const std::string& where, Violations& found) {
  Input input;
  Fields fields(value, where, found);
  fields.take("name", input.name, schema::read_text);
  fields.take("dtype", input.dtype, read_dtype);
  fields.take("shape", input.shape, read_shape);
  fields.may("low", input.low, or_null(schema::read_integer));
  fields.may("high", input.high, or_null(schema::read_integer));
  fields.may("fill", input.fill, or_null(schema::read_integer));
  fields.close();
  return input;
}

Output read_output(const json::Value& value, const std::string& where, Violations& found) {
  Output output;
  Fields fields(value, where, found);
  fields.take("name", output.name, schema::read_text);
  fields.take("dtype", output.dtype, read_dtype);
  fields.take("shape", output.shape, read_shape);
  fields.close();
  return output;
}

File read_file(const json::Value& value, const std::string& where, Violations& found) {
  File file;
  Fields fields(value, where, found);
  fields.take("path", file.path, schema::read_relative_path);
  fields.take("bytes", file.bytes, schema::read_natural);
  fields.take("sha256", file.sha256, schema::read_sha256);
  fields.close();
  return file;
}

// What follows is checked as the rest is, and not kept: bound adapters need none of it.

bool check_frozen_weight(const json::Value& value, const std::string& where, Violations& found) {
  std::string text;
  std::int64_t number = 0;
  std::vector<std::int64_t> shape;
  bool flag = false;
  Fields fields(value, where, found);
  fields.take("name", text, schema::read_text);
  fields.take("path", text, schema::read_relative_path);
  fields.take("offset", number, schema::read_natural);
  fields.take("shape", shape, list_of(schema::read_natural));
  fields.take("transposed", flag, schema::read_flag);
  fields.take("checkpoint_transposed", flag, schema::read_flag);
  fields.close();
  return true;
}

bool check_tokenizer(const json::Value& value, const std::string& where, Violations& found) {
  std::string text;
  std::int64_t number = 0;
  std::optional<std::int64_t> longest;
  Fields fields(value, where, found);
  fields.take("file", text, schema::read_relative_path);
  fields.take("pad_id", number, schema::read_natural);
  fields.take("pad_token", text, schema::read_any_text);
  fields.take("max_length", longest, or_null(schema::read_positive));
  fields.close();
  return true;
}

bool check_tools(const json::Value& value, const std::string& where, Violations& found) {
  const auto* object = value.as<json::Object>();
  if (object == nullptr) {
    found.add(where, value, "Input should be an object");
    return false;
  }
  for (const json::Member& tool : *object) {
    const std::string place = schema::member_of(where, tool.key);
    schema::read_text(json::Value{tool.key}, schema::member_of(place, "[key]"), found);
    schema::read_text(tool.value, place, found);
  }
  return true;
}

// Reads the base and the limits into the manifest that holds them.

auto base_reader(Manifest& manifest) {
  return [&manifest](const json::Value& value, const std::string& where, Violations& found) {
    static const Choice tasks{"feature-extraction", "text-classification", "token-classification",
                              "image-classification", "text-generation"};
    std::string source;
    Fields fields(value, where, found);
    fields.take("name", manifest.base_name, schema::read_text);
    fields.take("source", source, schema::read_text);
    fields.take("architecture", manifest.architecture, schema::read_text);
    fields.take("model_type", manifest.model_type, schema::read_text);
    fields.take("prefix", manifest.prefix, schema::read_text);
    fields.take("task", manifest.task, tasks);
    fields.take("dtype", manifest.dtype, read_float_dtype);
    fields.may("quantization", manifest.quantization, or_null(read_quantization));
    fields.take("fingerprint", manifest.fingerprint, schema::read_fingerprint);
    fields.take("max_positions", manifest.max_positions, or_null(schema::read_positive));
    fields.may("labels", manifest.base_labels, list_of(schema::read_text));
    fields.close();
    return true;
  };
}

auto limits_reader(Manifest& manifest) {
  return [&manifest](const json::Value& value, const std::string& where, Violations& found) {
    Fields fields(value, where, found);
    fields.take("max_rank", manifest.max_rank, schema::read_positive);
    fields.may("max_width", manifest.max_width, or_null(schema::read_positive));
    fields.close();
    return true;
  };
}

Manifest read_manifest(const json::Value& value, Violations& found) {
  static const Choice kinds{"lora", "bias", "scale", "bottleneck", "head"};
  Manifest manifest;
  std::int64_t version = 0, opset = 0;
  bool done = false;
  std::optional<Factors> guards;
  std::string slot_rows = "bank";
  std::vector<std::string> modules;
  Fields fields(value, "", found);
  fields.take("format_version", version, schema::NumberChoice{1, 2, 3, 4});
  fields.take("base", done, base_reader(manifest));
  fields.take("opset", opset, schema::read_positive);
  fields.take("slots", manifest.slots, list_of(kinds));
  fields.take("inputs", manifest.inputs, list_of(read_input));
  fields.take("outputs", manifest.outputs, list_of(read_output));
  fields.take("adapter_ids", manifest.adapter_ids, or_null(schema::read_text));
  fields.take("sites", manifest.sites, list_of(read_site));
  fields.may("bottlenecks", manifest.bottlenecks, or_null(read_bottlenecks));
  fields.may("head", manifest.head, or_null(read_head));
  fields.may("guards", guards, or_null(read_guards));
  fields.may("slot_rows", slot_rows, Choice{"bank", "batch"});
  fields.may("generation", manifest.generation, or_null(read_generation));
  fields.take("limits", done, limits_reader(manifest));
  fields.take("modules", modules, list_of(schema::read_text));
  std::vector<int> weights;
  fields.may("weights", weights, list_of([](const json::Value& item, const std::string& where, Violations& wrong) {
               return check_frozen_weight(item, where, wrong) ? 1 : 0;
             }));
  std::optional<bool> tokenizer;
  fields.take("tokenizer", tokenizer, or_null(check_tokenizer));
  fields.take("files", manifest.files, list_of(read_file));
  fields.take("tools", done, check_tools);
  fields.close();
  manifest.format_version = static_cast<int>(version);
  manifest.batch_rows = slot_rows == "batch";
  if (guards.has_value()) manifest.guards = std::move(*guards);
  return manifest;
}

void collect_slot_inputs(Manifest& manifest) {
  const auto add = [&](const Factors& factors) {
    for (const auto& factor : factors) manifest.slot_inputs.push_back(factor.second);
  };
  for (const Site& site : manifest.sites) add(site.linear);
  if (manifest.bottlenecks.has_value()) {
    for (const BottleneckSite& site : manifest.bottlenecks->sites) add(site.slot);
  }
  if (manifest.head.has_value()) add(manifest.head->slot);
  add(manifest.guards);
}

bool repeats(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return std::adjacent_find(names.begin(), names.end()) != names.end();
}

// `slots` names a kind if and only if there are such slots.
Faults kind_faults(const Manifest& manifest) {
  std::set<std::string> linear;
  for (const Site& site : manifest.sites) {
    for (const auto& factor : site.linear) linear.insert(factor.first);
  }
  const std::pair<const char*, bool> kinds[] = {
      {"lora", linear.count("lora_A") > 0},
      {"bias", linear.count("bias") > 0},
      {"scale", linear.count("scale_in") + linear.count("scale_out") > 0},
      {"bottleneck", manifest.bottlenecks.has_value()},
      {"head", manifest.head.has_value()},
  };
  Faults wrong;
  for (const auto& [kind, there] : kinds) {
    if (there != (std::find(manifest.slots.begin(), manifest.slots.end(), kind) != manifest.slots.end())) {
      wrong.push_back("slots must name " + std::string(kind) + " if and only if there are such slots");
    }
  }
  return wrong;
}

// Sites and inputs that are listed twice.
Faults name_faults(const Manifest& manifest) {
  std::vector<std::string> linear, bottlenecks, inputs;
  for (const Site& site : manifest.sites) linear.push_back(site.path);
  if (manifest.bottlenecks.has_value()) {
    for (const BottleneckSite& site : manifest.bottlenecks->sites) bottlenecks.push_back(site.path);
  }
  for (const Input& input : manifest.inputs) inputs.push_back(input.name);
  for (const SlotInput& input : manifest.slot_inputs) inputs.push_back(input.name);
  if (manifest.adapter_ids.has_value()) inputs.push_back(*manifest.adapter_ids);
  if (manifest.generation.has_value()) {
    for (std::string& name : inputs_of(*manifest.generation)) inputs.push_back(std::move(name));
  }
  Faults wrong;
  if (repeats(std::move(linear))) wrong.emplace_back("a site is listed twice");
  if (repeats(std::move(bottlenecks))) wrong.emplace_back("a site is listed twice");
  if (repeats(std::move(inputs))) wrong.emplace_back("an input is listed twice");
  return wrong;
}

// Slot inputs of a type of their own where there can be none.
Faults bank_faults(const Manifest& manifest) {
  const auto narrow = [](const SlotInput& slot) { return slot.dtype.has_value() && *slot.dtype != Element::int64; };
  const auto& slots = manifest.slot_inputs;
  if (std::none_of(slots.begin(), slots.end(), narrow)) return {};
  Faults wrong;
  if (manifest.format_version < 4) {
    wrong.push_back("a dtype of slot inputs is not known to version " + std::to_string(manifest.format_version));
  }
  if (manifest.dtype != Element::fp32) {
    wrong.emplace_back("slot inputs have a dtype of their own under float32 only");
  }
  if (manifest.head.has_value() && std::any_of(manifest.head->slot.begin(), manifest.head->slot.end(),
                                               [&](const auto& factor) { return narrow(factor.second); })) {
    wrong.emplace_back("the head's slot inputs have the dtype of the base");
  }
  return wrong;
}

// Everything in which parts of a manifest contradict one another.
Faults all_faults(const Manifest& manifest) {
  Faults wrong;
  const auto add = [&](Faults faults) { std::move(faults.begin(), faults.end(), std::back_inserter(wrong)); };
  const bool slotted = !manifest.sites.empty() || manifest.bottlenecks.has_value() || manifest.head.has_value();
  const bool picked = slotted && !manifest.batch_rows;
  if (picked != manifest.adapter_ids.has_value() || slotted == manifest.slots.empty()) {
    wrong.emplace_back("sites, slots and adapter_ids must be there together or not at all");
  }
  if (manifest.batch_rows != (slotted && manifest.generation.has_value())) {
    wrong.emplace_back("slot_rows must be batch if and only if there are slots and generation");
  }
  add(generation_faults(manifest));
  add(bank_faults(manifest));
  add(kind_faults(manifest));
  add(name_faults(manifest));
  for (const Site& site : manifest.sites) add(faults_of(site));
  if (manifest.bottlenecks.has_value()) add(faults_of(*manifest.bottlenecks));
  if (manifest.head.has_value()) add(faults_of(*manifest.head));
  add(faults_of_guards(manifest.guards));
  if (manifest.generation.has_value()) add(faults_of(*manifest.generation));
  if (manifest.quantization.has_value()) add(faults_of(*manifest.quantization));
  return wrong;
}

json::Value parse_text(const std::string& text, const std::string& headline, const std::string& where) {
  try {
    return json::parse(text);
  } catch (const json::RepeatedKeys& error) {
    throw Error(
        Kind::bundle, headline,
        Problem{
            code::duplicate_key, std::string("key ") + error.what(), {}, {}, "a tampered or badly merged file"});
  } catch (const json::SyntaxError& error) {
    throw Error(
        Kind::bundle, headline,
        Problem{code::bad_manifest, where, "no JSON (" + std::string(error.what()) + ")", {}, {}, mend_bundle});
  }
}

// Another version may mean anything by the rest, so that is not looked at.
void check_version(const json::Value& value, const std::string& headline) {
  const auto* object = value.as<json::Object>();
  const json::Value* version = object == nullptr ? nullptr : json::find(*object, "format_version");
  Violations wrong;
  schema::NumberChoice{1, 2, 3, 4}(version == nullptr ? json::Value{} : *version, "format_version", wrong);
  if (wrong.none()) return;
  throw Error(Kind::bundle, headline,
              Problem{code::version, "format_version", wrong.found().front().got, "1 or 2 or 3 or 4",
                      "the bundle was written by another version of adexport",
                      "install the adexport that wrote it, or build the bundle again"});
}

std::string joined(const Faults& faults) {
  std::string text = "Value error, ";
  for (std::size_t index = 0; index < faults.size(); ++index) text += (index > 0 ? "; " : "") + faults[index];
  return text;
}

}  // namespace

Manifest parse_manifest(std::string text, const std::string& where) {
  const std::string headline = where + " is refused";
  const json::Value value = parse_text(text, headline, where);
  check_version(value, headline);
  Violations found;
  Manifest manifest = read_manifest(value, found);
  if (found.none()) {
    collect_slot_inputs(manifest);
    if (const Faults faults = all_faults(manifest); !faults.empty()) found.add(joined(faults));
  }
  if (!found.none()) {
    std::vector<Problem> problems;
    for (const schema::Violation& item : found.found()) {
      const std::string& subject = item.where.empty() ? "manifest" : item.where;
      problems.push_back({code::bad_manifest, subject, item.got, item.expected, {}, mend_bundle});
    }
    throw Error(Kind::bundle, headline, std::move(problems));
  }
  manifest.text = std::move(text);
  return manifest;
}

}  // namespace adexport::core
