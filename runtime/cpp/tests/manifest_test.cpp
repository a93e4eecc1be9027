#include "manifest.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "support.hpp"

namespace adexport::core {
namespace {

using tests::apply;
using tests::Culprits;
using tests::culprits;
using tests::Edit;
using tests::error_of;
using tests::every_slot_manifest;
using tests::generation_manifest;
using tests::Json;
using tests::lora_manifest;
using tests::removed;
using Pointer = Json::json_pointer;

Error refused(const std::string& text) {
  const auto error = error_of([&] { parse_manifest(text, "here/manifest.json"); });
  if (!error.has_value()) return Error(Kind::internal, "not refused", Problem{});
  EXPECT_EQ(error->kind(), Kind::bundle);
  EXPECT_EQ(error->headline(), "here/manifest.json is refused");
  return *error;
}

std::set<std::string> subjects(const std::string& text, const char* code = code::bad_manifest) {
  std::set<std::string> found;
  for (const auto& [got, subject] : culprits(refused(text))) {
    EXPECT_EQ(got, code) << text.substr(0, 80);
    found.insert(subject);
  }
  return found;
}

using Subjects = std::set<std::string>;

TEST(Manifest, WhatItSays) {
  const std::string text = every_slot_manifest().dump(1);
  const Manifest manifest = parse_manifest(text);
  EXPECT_EQ(manifest.text, text);
  EXPECT_EQ(manifest.format_version, 3);
  EXPECT_EQ(manifest.base_name, "tiny");
  EXPECT_EQ(manifest.task, "text-classification");
  EXPECT_EQ(manifest.fingerprint, tests::fingerprint());
  EXPECT_EQ(manifest.max_positions, 24);
  EXPECT_EQ(manifest.base_labels, (std::vector<std::string>{"no", "yes"}));
  EXPECT_EQ(manifest.slots.size(), 5U);
  ASSERT_EQ(manifest.inputs.size(), 2U);
  EXPECT_EQ(manifest.inputs[0].high, 19);
  EXPECT_FALSE(manifest.inputs[0].fill.has_value());
  EXPECT_EQ(manifest.inputs[1].fill, 1);
  EXPECT_EQ(std::get<std::int64_t>(manifest.outputs.at(0).shape.at(2)), 4);
  EXPECT_EQ(manifest.adapter_ids, "adapter_ids");
  EXPECT_EQ(manifest.max_rank, 4);
  EXPECT_EQ(manifest.max_width, 8);
  EXPECT_EQ(manifest.files.at(1).path, "weights/fp32.bin");
  EXPECT_EQ(manifest.files.at(1).bytes, 3);
  EXPECT_FALSE(manifest.batch_rows);
  EXPECT_FALSE(manifest.generation.has_value());
}

TEST(Manifest, SlotInputsAreInTheOrderOfTheGraph) {
  Json data = every_slot_manifest();
  Json& linear = data["sites"][0]["linear"];  // the order in the text does not count
  const Json first = linear["lora_A"];
  linear.erase("lora_A");
  linear["lora_A"] = first;
  std::vector<std::string> names;
  const Manifest manifest = parse_manifest(data.dump());
  for (const SlotInput& slot : manifest.slot_inputs) names.push_back(slot.name);
  EXPECT_EQ(names, (std::vector<std::string>{"layer.0.query.lora_A",
                                             "layer.0.query.lora_B",
                                             "layer.0.query.adapter_bias",
                                             "layer.0.query.scale_in",
                                             "layer.0.query.scale_out",
                                             "layer.0.dense.lora_A",
                                             "layer.0.dense.lora_B",
                                             "layer.0.out.bottleneck.down",
                                             "layer.0.out.bottleneck.down_bias",
                                             "layer.0.out.bottleneck.up",
                                             "layer.0.out.bottleneck.up_bias",
                                             "layer.0.out.bottleneck.norm_after_weight",
                                             "layer.0.out.bottleneck.norm_after_bias",
                                             "layer.0.out.bottleneck.code",
                                             "layer.0.end.bottleneck.down",
                                             "layer.0.end.bottleneck.down_bias",
                                             "layer.0.end.bottleneck.up",
                                             "layer.0.end.bottleneck.up_bias",
                                             "layer.0.end.bottleneck.norm_after_weight",
                                             "layer.0.end.bottleneck.norm_after_bias",
                                             "layer.0.end.bottleneck.code",
                                             "adapter_head.dense",
                                             "adapter_head.dense_bias",
                                             "adapter_head.deep",
                                             "adapter_head.out",
                                             "adapter_head.out_bias",
                                             "adapter_head.code",
                                             "adapter_uses.linear",
                                             "adapter_uses.bottleneck"}));
  EXPECT_TRUE(find(manifest.sites[0].linear, "scale_in")->ones);
  EXPECT_EQ(find(manifest.sites[0].linear, "norm"), nullptr);
  EXPECT_EQ(manifest.element(*find(manifest.guards, "linear")), Element::int64);
  EXPECT_EQ(manifest.element(*find(manifest.sites[0].linear, "lora_A")), Element::fp32);
}

TEST(Manifest, CodesOfStyles) {
  const Manifest manifest = parse_manifest(every_slot_manifest().dump());
  const BottleneckForm plain, other{"normed", "sum", "sum", false, false};
  EXPECT_EQ(manifest.bottlenecks->code({plain, "relu"}), 0);
  EXPECT_EQ(manifest.bottlenecks->code({plain, "gelu"}), 1);
  EXPECT_EQ(manifest.bottlenecks->code({other, "gelu"}), 3);
  EXPECT_EQ(manifest.bottlenecks->code({other, "tanh"}), std::nullopt);
  EXPECT_EQ(manifest.bottlenecks->code({{"normed", "sum", "sum", true, false}, "gelu"}), std::nullopt);
  EXPECT_EQ(manifest.head->code({"first", std::nullopt, {}}), 1);
  EXPECT_EQ(manifest.head->code({"first", "tanh", {}}), 1);
  EXPECT_EQ(manifest.head->code({"pooler", "relu", {}}), 4);
  EXPECT_EQ(manifest.head->code({"last", std::nullopt, {}}), std::nullopt);
  EXPECT_EQ(manifest.head->code({"first", "gelu", {}}), std::nullopt);
}

TEST(Manifest, EarlierVersionsTakeDefaults) {
  Json data = lora_manifest();
  data["format_version"] = 1;
  for (const char* key : {"bottlenecks", "head", "guards", "slot_rows", "generation", "weights"}) data.erase(key);
  data["limits"].erase("max_width");
  data["base"].erase("quantization");
  for (Json& site : data["sites"]) {
    site.erase("bias");
    for (const char* key : {"bias", "scale_in", "scale_out"}) site["linear"].erase(key);
    for (const char* key : {"lora_A", "lora_B"}) {
      site["linear"][key].erase("identity");
      site["linear"][key].erase("dtype");
    }
  }
  const Manifest manifest = parse_manifest(data.dump());
  EXPECT_EQ(manifest.format_version, 1);
  EXPECT_TRUE(manifest.guards.empty());
  EXPECT_FALSE(manifest.batch_rows);
  EXPECT_FALSE(manifest.sites[0].bias.has_value());
  EXPECT_FALSE(manifest.slot_inputs[0].ones);
  EXPECT_EQ(manifest.element(manifest.slot_inputs[0]), Element::fp32);
  data["format_version"] = 2;
  EXPECT_EQ(parse_manifest(data.dump()).format_version, 2);
}

TEST(Manifest, Generation) {
  const Manifest manifest = parse_manifest(generation_manifest().dump());
  EXPECT_TRUE(manifest.batch_rows);
  EXPECT_FALSE(manifest.adapter_ids.has_value());
  ASSERT_TRUE(manifest.generation.has_value());
  EXPECT_EQ(manifest.generation->caches.at(0).kv_heads, 2);
  EXPECT_EQ(manifest.generation->caches.at(0).past_value, "pv");
  EXPECT_FALSE(manifest.generation->caches.at(0).window.has_value());
  EXPECT_EQ(manifest.generation->eos_ids, std::vector<std::int64_t>{2});
}

const std::vector<Edit>& one_wrong() {
  static const std::vector<Edit> edits = {
      {"/surprise", 1, "surprise"},
      {"/sites/0/linear/g_out", Json::object(), "sites.0.linear.g_out"},
      {"/tools", removed, "tools"},
      {"/adapter_ids", removed, "adapter_ids"},
      {"/base/fingerprint", removed, "base.fingerprint"},
      {"/opset", "23", "opset"},
      {"/opset", std::uint64_t{1} << 63, "opset"},
      {"/limits/max_rank", 16.0, "limits.max_rank"},
      {"/limits/max_rank", true, "limits.max_rank"},
      {"/limits/max_width", 0, "limits.max_width"},
      {"/sites/0/in_features", 0, "sites.0.in_features"},
      {"/inputs/0/low", 0.0, "inputs.0.low"},
      {"/inputs/0/dtype", "float", "inputs.0.dtype"},
      {"/files", nullptr, "files"},
      {"/base", Json::array(), "base"},
      {"/inputs", Json::object(), "inputs"},
      {"/base/dtype", "int64", "base.dtype"},
      {"/base/dtype", 3, "base.dtype"},
      {"/base/task", "generation", "base.task"},
      {"/base/labels", "x", "base.labels"},
      {"/base/quantization", "int8", "base.quantization"},
      {"/base/max_positions", -1, "base.max_positions"},
      {"/slots/0", "prefix", "slots.0"},
      {"/slot_rows", "rows", "slot_rows"},
      {"/base/fingerprint", "sha256:" + std::string(64, 'g'), "base.fingerprint"},
      {"/base/fingerprint", std::string(71, 'a'), "base.fingerprint"},
      {"/files/0/sha256", std::string(63, '0'), "files.0.sha256"},
      {"/files/0/sha256", std::string(64, '0') + "\n", "files.0.sha256"},
      {"/files/0/sha256", std::string(64, 'A'), "files.0.sha256"},
      {"/files/0/bytes", -1, "files.0.bytes"},
      {"/files/0/path", "../x", "files.0.path"},
      {"/files/0/path", "a/../../x", "files.0.path"},
      {"/files/0/path", "/etc/passwd", "files.0.path"},
      {"/files/0/path", "a\n", "files.0.path"},
      {"/files/0/path", "a\\b", "files.0.path"},
      {"/files/0/path", "a//b", "files.0.path"},
      {"/files/0/path", "a/", "files.0.path"},
      {"/files/0/path", "", "files.0.path"},
      {"/files/0/path", "a/.b", "files.0.path"},
      {"/tools/torch", nullptr, "tools.torch"},
      {"/modules/0", 1, "modules.0"},
      {"/weights/0/transposed", 1, "weights.0.transposed"},
      {"/weights/0/shape/1", -1, "weights.0.shape.1"},
      {"/weights/0/path", "../w", "weights.0.path"},
      {"/weights/0/more", 1, "weights.0.more"},
      {"/tokenizer", 1, "tokenizer"},
      {"/tokenizer/pad_id", -1, "tokenizer.pad_id"},
      {"/sites/0/linear/lora_A/identity", "twos", "sites.0.linear.lora_A.identity"},
      {"/sites/0/linear/lora_A/dtype", "fp32", "sites.0.linear.lora_A.dtype"},
      {"/guards/linear", "x", "guards.linear"},
      {"/bottlenecks/forms/0/close", 1, "bottlenecks.forms.0.close"},
      {"/bottlenecks/forms/0/input", "x", "bottlenecks.forms.0.input"},
      {"/bottlenecks/activations/1", "swish", "bottlenecks.activations.1"},
      {"/bottlenecks/sites/0/location", "x", "bottlenecks.sites.0.location"},
      {"/bottlenecks/sites/0/layer", "0", "bottlenecks.sites.0.layer"},
      {"/bottlenecks/sites/0/slot/down", nullptr, "bottlenecks.sites.0.slot.down"},
      {"/bottlenecks/sites/0/slot/up", removed, "bottlenecks.sites.0.slot.up"},
      {"/head/inputs/0", "second", "head.inputs.0"},
      {"/head/own", removed, "head.own"},
      {"/head/own/biased", nullptr, "head.own.biased"},
      {"/head/own/more", 1, "head.own.more"},
      {"/head/slot/code", nullptr, "head.slot.code"},
      {"/generation", Json::array(), "generation"},
  };
  return edits;
}

TEST(Manifest, OneThingWrong) {
  for (const Edit& edit : one_wrong()) {
    Json data = every_slot_manifest();
    apply(data, edit);
    EXPECT_EQ(subjects(data.dump()), Subjects{edit.subject}) << edit.path << " " << edit.value;
  }
}

// The C interface would cut them there. A text that never goes through it may have one.
TEST(Manifest, NamesWithAZeroByte) {
  const std::string zero("a\0b", 3);
  for (const char* path :
       {"/base/name", "/base/labels/0", "/inputs/0/name", "/inputs/0/shape/0", "/outputs/0/name", "/adapter_ids",
        "/sites/0/path", "/sites/0/weight", "/sites/0/linear/lora_A/name", "/sites/0/linear/lora_A/shape/2",
        "/bottlenecks/sites/0/path", "/bottlenecks/sites/0/slot/down/name", "/head/slot/out/name", "/head/own/out",
        "/guards/linear/name", "/modules/0", "/weights/0/name", "/files/0/path", "/tools/torch"}) {
    Json data = every_slot_manifest();
    apply(data, {path, zero});
    const auto found = subjects(data.dump());
    ASSERT_FALSE(found.empty()) << path;
    std::string subject = std::string(path).substr(1);
    std::replace(subject.begin(), subject.end(), '/', '.');
    for (const std::string& culprit : found) EXPECT_EQ(culprit.rfind(subject, 0), 0U) << culprit;
  }
  Json data = every_slot_manifest();
  data["tools"][zero] = "1";
  EXPECT_EQ(subjects(data.dump()), Subjects{"tools.a\\x00b.[key]"});
  data = every_slot_manifest();
  data["tokenizer"]["pad_token"] = zero;
  EXPECT_NO_THROW(parse_manifest(data.dump()));
}

TEST(Manifest, OneThingWrongInGeneration) {
  for (const Edit& edit : std::vector<Edit>{
           {"/generation/lengths", nullptr, "generation.lengths"},
           {"/generation/lengths", std::string("a\0b", 3), "generation.lengths"},
           {"/generation/caches/0/present_key", std::string("\0", 1), "generation.caches.0.present_key"},
           {"/generation/caches/0/size", 0, "generation.caches.0.size"},
           {"/generation/caches/0/window", 0, "generation.caches.0.window"},
           {"/generation/caches/0/window", removed, "generation.caches.0.window"},
           {"/generation/eos_ids/0", -1, "generation.eos_ids.0"},
           {"/generation/more", 1, "generation.more"},
       }) {
    Json data = generation_manifest();
    apply(data, edit);
    EXPECT_EQ(subjects(data.dump()), Subjects{edit.subject}) << edit.path;
  }
}

TEST(Manifest, ASizeIsATextOrAPositiveNumber) {
  for (const Json& size : {Json(-32), Json(0), Json(1.0), Json(true), Json(nullptr), Json::array()}) {
    Json data = lora_manifest();
    data["outputs"][0]["shape"][2] = size;
    EXPECT_EQ(subjects(data.dump()),
              (Subjects{"outputs.0.shape.2.constrained-str", "outputs.0.shape.2.constrained-int"}));
  }
}

TEST(Manifest, EverythingWrongIsNamedAtOnce) {
  Json data = every_slot_manifest();
  Subjects expected;
  for (const std::size_t index : {0U, 2U, 4U, 5U, 10U, 26U, 30U, 41U}) {
    apply(data, one_wrong()[index]);
    expected.insert(one_wrong()[index].subject);
  }
  EXPECT_EQ(expected.size(), 8U);
  EXPECT_EQ(subjects(data.dump()), expected);
  const std::string message = refused(data.dump()).what();
  for (const std::string& subject : expected) EXPECT_NE(message.find(subject), std::string::npos);
}

TEST(Manifest, OtherVersionsAreRefusedBeforeAllElse) {
  const std::pair<Json, const char*> versions[] = {
      {0, "0"},     {5, "5"},     {"1", "'1'"},           {nullptr, "None"}, {true, "True"},
      {{1}, "[1]"}, {1.5, "1.5"}, {Json::object(), "{}"}, {4.0, "4.0"},      {"4", "'4'"}};
  for (const auto& [version, shown] : versions) {
    Json data = lora_manifest();
    data["format_version"] = version;
    data["surprise"] = 1;
    const Error error = refused(data.dump());
    EXPECT_EQ(culprits(error), (Culprits{{code::version, "format_version"}}));
    EXPECT_EQ(error.problems().at(0).got, shown);
    EXPECT_EQ(error.problems().at(0).expected, "1 or 2 or 3 or 4");
  }
  for (const char* text : {"{}", "[]", "1", "null", "\"text\""}) {
    EXPECT_EQ(subjects(text, code::version), Subjects{"format_version"}) << text;
  }
}

TEST(Manifest, NoJson) {
  for (const std::string& text : {std::string(), std::string(" "), std::string("{"), std::string("{'a': 1}"),
                                  std::string("{}{}"), std::string("\xff\xfe"), std::string("PK\x03\x04"),
                                  std::string(100'000, '['), lora_manifest().dump() + std::string(1, '\0')}) {
    EXPECT_EQ(subjects(text), Subjects{"here/manifest.json"});
  }
}

TEST(Manifest, EveryTruncationIsRefused) {
  const std::string text = lora_manifest().dump();
  for (std::size_t size = 0; size < text.size(); size += 7) {
    ASSERT_EQ(subjects(text.substr(0, size)), Subjects{"here/manifest.json"});
  }
}

TEST(Manifest, RepeatedKeysAreNamed) {
  std::string text = lora_manifest().dump();
  text.replace(text.find("\"opset\""), 7, R"("opset":22,"opset")");
  EXPECT_EQ(subjects(text, code::duplicate_key), Subjects{"key opset"});
}

TEST(Manifest, AnyValueAtAnyPlace) {
  const Json values[] = {
      nullptr, true, 0, 1, -1, 1.5, "", "fp32", "rows", "all", Json::array(), {1}, Json::object(), {{"name", "x"}}};
  std::mt19937 random(2);
  for (const Json& sound : {every_slot_manifest(), generation_manifest()}) {
    const Json places = sound.flatten();
    for (const auto& item : places.items()) {
      for (Pointer place(item.key()); !place.empty(); place.pop_back()) {
        Json data = sound;
        data[place] = values[random() % std::size(values)];
        try {
          parse_manifest(data.dump());
        } catch (const Error& error) {
          ASSERT_FALSE(error.problems().empty());
        }
      }
    }
  }
}

}  // namespace
}  // namespace adexport::core
