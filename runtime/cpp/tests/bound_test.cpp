#include "bound.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support.hpp"

namespace adexport::core {
namespace {

using tests::Culprits;
using tests::culprits;
using tests::error_of;
using tests::filled;
using tests::Json;
using tests::Tensors;

using Metadata = std::map<std::string, std::string>;

const std::string query = "layer.0.query", dense = "layer.0.dense", block = "layer.0.out";
const std::filesystem::path file_name = "folder/acme.safetensors";

Manifest lora() {
  return parse_manifest(tests::lora_manifest().dump());
}

Manifest every_slot(const std::string& dtype = "fp32") {
  Json data = tests::every_slot_manifest();
  data["base"]["dtype"] = dtype;
  return parse_manifest(data.dump());
}

Metadata metadata() {
  return {{"format", "adexport-adapter"},
          {"format_version", "2"},
          {"name", "acme"},
          {"source_type", "peft:LORA"},
          {"source_sha256", std::string(64, '0')},
          {"base_fingerprint", tests::fingerprint()},
          {"rank", "3"}};
}

Tensors pairs() {
  return {{query + ".lora_A", filled({4, 3}, 1.0F)},
          {query + ".lora_B", filled({3, 4}, 2.0F)},
          {dense + ".lora_A", filled({4, 2}, 3.0F)},
          {dense + ".lora_B", filled({2, 6}, 4.0F)}};
}

// With bottlenecks of the bundle's second form at one site, and a head of two layers.
Tensors everything() {
  Tensors tensors = pairs();
  const std::string stem = block + ".bottleneck.";
  tensors[query + ".adapter_bias"] = filled({4});
  tensors[query + ".scale_in"] = filled({4});
  tensors[query + ".scale_out"] = filled({4});
  tensors[stem + "down"] = filled({4, 5});
  tensors[stem + "down_bias"] = filled({5});
  tensors[stem + "up"] = filled({5, 4});
  tensors[stem + "up_bias"] = filled({4});
  tensors[stem + "norm_after_weight"] = filled({4});
  tensors[stem + "norm_after_bias"] = filled({4});
  tensors["adapter_head.dense"] = filled({4, 7});
  tensors["adapter_head.dense_bias"] = filled({7});
  tensors["adapter_head.deep"] = filled({7, 2});
  tensors["adapter_head.out_bias"] = filled({2});
  return tensors;
}

const Json form = {
    {"input", "normed"}, {"skip", "sum"}, {"close", false}, {"norm_before", false}, {"norm_after", "sum"}};

Metadata styles() {
  Metadata said = metadata();
  said["bottleneck"] = Json{{"form", form}, {"activation", "gelu"}}.dump();
  said["head"] = R"({"feature": "pooler", "activation": "relu", "labels": ["a", "b"]})";
  return said;
}

RowTensors rows_of(const std::string& content, const Manifest& manifest) {
  return check_bound(parse_tensors(tests::bytes_of(content), file_name), manifest);
}

Error refused(const Tensors& tensors, const Metadata& said, const Manifest& manifest) {
  const auto error = error_of([&] { rows_of(tests::safetensors(tensors, said), manifest); });
  if (!error.has_value()) return Error(Kind::internal, "not refused", Problem{});
  EXPECT_EQ(error->kind(), Kind::adapter);
  return *error;
}

TEST(Bound, WhatARowHolds) {
  const RowTensors rows = rows_of(tests::safetensors(pairs(), metadata()), lora());
  EXPECT_FALSE(rows.labels.has_value());
  ASSERT_EQ(rows.tensors.size(), 5U);
  const RowTensor& a = rows.tensors.at(query + ".lora_A");
  EXPECT_EQ(a.shape, (std::vector<std::int64_t>{4, 3}));
  ASSERT_NE(a.values, nullptr);
  EXPECT_EQ(std::vector<float>(a.values, a.values + 12), std::vector<float>(12, 1.0F));
  const RowTensor& guard = rows.tensors.at("adapter_uses.linear");
  EXPECT_EQ(guard.values, nullptr);
  EXPECT_TRUE(guard.shape.empty());
  EXPECT_EQ(guard.number, 1);
}

TEST(Bound, FloatsAreAlignedWhereverTheyLie) {
  for (std::size_t padding = 0; padding < 8; ++padding) {
    const RowTensors rows = rows_of(tests::safetensors(pairs(), metadata(), padding), lora());
    for (const auto& [name, tensor] : pairs()) {
      const RowTensor& row = rows.tensors.at(name);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(row.values) % alignof(float), 0U);
      ASSERT_EQ(std::vector<float>(row.values, row.values + tensor.values.size()), tensor.values);
    }
  }
}

TEST(Bound, CodesGuardsAndLabels) {
  const RowTensors rows = rows_of(tests::safetensors(everything(), styles()), every_slot());
  EXPECT_EQ(rows.tensors.at(block + ".bottleneck.code").number, 3);
  EXPECT_EQ(rows.tensors.count("layer.0.end.bottleneck.code"), 0U);
  EXPECT_EQ(rows.tensors.at("adapter_head.code").number, 4);
  EXPECT_EQ(rows.tensors.at("adapter_uses.linear").number, 1);
  EXPECT_EQ(rows.tensors.at("adapter_uses.bottleneck").number, 1);
  EXPECT_EQ(rows.labels, (std::vector<std::string>{"a", "b"}));
}

TEST(Bound, GuardsTellWhatIsNotThere) {
  const RowTensors rows = rows_of(tests::safetensors(pairs(), metadata()), every_slot());
  EXPECT_EQ(rows.tensors.at("adapter_uses.linear").number, 1);
  EXPECT_EQ(rows.tensors.at("adapter_uses.bottleneck").number, 0);
  EXPECT_EQ(rows.tensors.count("adapter_head.code"), 0U);
  Metadata said = metadata();
  said["head"] = R"({"feature": "first", "activation": null, "labels": ["a"]})";
  const Tensors head = {{"adapter_head.out", filled({4, 1})}, {"adapter_head.out_bias", filled({1})}};
  const RowTensors of_head = rows_of(tests::safetensors(head, said), every_slot());
  EXPECT_EQ(of_head.tensors.at("adapter_uses.linear").number, 0);
  EXPECT_EQ(of_head.tensors.at("adapter_head.code").number, 1);
}

TEST(Bound, FitsEveryPrecision) {
  for (const char* dtype : {"fp32", "fp16", "bf16"}) {
    EXPECT_EQ(rows_of(tests::safetensors(everything(), styles()), every_slot(dtype)).tensors.size(), 21U) << dtype;
  }
}

TEST(Bound, Loads) {
  const tests::TemporaryFolder folder;
  const auto path = folder.write("acme.safetensors", tests::safetensors(pairs(), metadata()));
  RowTensors rows = load_bound(path, lora());
  std::filesystem::remove(path);
  EXPECT_EQ(*rows.tensors.at(dense + ".lora_B").values, 4.0F);
  EXPECT_EQ(culprits(error_of([&] { load_bound(path, lora()); }).value()),
            (Culprits{{code::absent, path.string()}}));
}

TEST(Bound, MetadataOfAnotherVersion) {
  const Culprits version = {{code::version, file_name.string()}};
  for (const char* key :
       {"format", "format_version", "name", "source_type", "source_sha256", "base_fingerprint", "rank"}) {
    Metadata said = metadata();
    said.erase(key);
    const Error error = refused(pairs(), said, lora());
    EXPECT_EQ(culprits(error), version) << key;
    const std::string lacking =
        std::string(key) == "format" ? "no adexport metadata" : std::string("without ") + key;
    EXPECT_NE(error.problems().at(0).got.find(lacking), std::string::npos) << error.what();
  }
  for (const char* value : {"3", "0", "", "2.0"}) {
    Metadata said = metadata();
    said["format_version"] = value;
    EXPECT_EQ(culprits(refused(pairs(), said, lora())), version) << value;
  }
  EXPECT_EQ(culprits(refused(pairs(), {}, lora())), version);
}

TEST(Bound, MetadataThatNoVersionHas) {
  Metadata said = metadata();
  said["more"] = "x";
  said["other"] = "y";
  EXPECT_EQ(culprits(refused(pairs(), said, lora())),
            (Culprits{{code::bad_config, "more"}, {code::bad_config, "other"}}));
  said = styles();
  said["format_version"] = "1";
  EXPECT_EQ(culprits(refused(everything(), said, every_slot())),
            (Culprits{{code::bad_config, "bottleneck"}, {code::bad_config, "head"}}));
  said = metadata();
  said["format_version"] = "1";
  EXPECT_EQ(rows_of(tests::safetensors(pairs(), said), lora()).tensors.size(), 5U);
}

TEST(Bound, ZeroBytesInTheMetadata) {
  for (const char* key : {"name", "source_type", "source_sha256", "base_fingerprint", "rank"}) {
    Metadata said = metadata();
    said[key] += std::string("\0", 1);
    EXPECT_EQ(culprits(refused(pairs(), said, lora())), (Culprits{{code::bad_config, key}}));
  }
}

TEST(Bound, APathForAName) {
  Metadata said = metadata();
  said["name"] = "../x";
  EXPECT_EQ(culprits(refused(pairs(), said, lora())), (Culprits{{code::bad_name, "'../x'"}}));
}

TEST(Bound, AnotherBase) {
  Metadata said = metadata();
  said["base_fingerprint"] = "sha256:" + std::string(64, '0');
  const Error error = refused(pairs(), said, lora());
  EXPECT_EQ(culprits(error), (Culprits{{code::wrong_base, "acme"}}));
  EXPECT_NE(std::string(error.what()).find("sha256:0000"), std::string::npos);
}

TEST(Bound, StylesAreReadStrictly) {
  const std::pair<const char*, std::string> wrong[] = {
      {"", "bottleneck"},
      {"{", "bottleneck"},
      {"null", "bottleneck"},
      {"[]", "bottleneck"},
      {"{}", "bottleneck.activation"},
      {R"({"form": {"close": 1}, "activation": "gelu"})", "bottleneck.form.close"},
      {R"({"form": {"input": "x"}, "activation": "gelu"})", "bottleneck.form.input"},
      {R"({"form": {"more": 1}, "activation": "gelu"})", "bottleneck.form.more"},
      {R"({"form": {}, "activation": "swish"})", "bottleneck.activation"},
      {R"({"form": {}, "activation": "gelu", "more": null})", "bottleneck.more"},
  };
  for (const auto& [text, subject] : wrong) {
    Metadata said = styles();
    said["bottleneck"] = text;
    EXPECT_EQ(culprits(refused(everything(), said, every_slot())).count({code::bad_config, subject}), 1U) << text;
  }
  Metadata said = styles();
  said["bottleneck"] = R"({"form": {}, "form": {}, "activation": "gelu"})";
  EXPECT_EQ(culprits(refused(everything(), said, every_slot())),
            (Culprits{{code::duplicate_key, "bottleneck: key form"}}));
  for (const char* text :
       {R"({"feature": "x", "activation": null, "labels": []})",
        R"({"feature": "first", "activation": 1, "labels": []})", R"({"feature": "first", "labels": []})",
        R"({"feature": "first", "activation": null, "labels": [1]})",
        R"({"feature": "first", "activation": null, "labels": ["a\u0000b"]})"}) {
    said = styles();
    said["head"] = text;
    EXPECT_EQ(refused(everything(), said, every_slot()).problems().at(0).code, code::bad_config) << text;
  }
}

TEST(Bound, OtherTypesThanFloat32) {
  for (const char* dtype : {"F16", "I16", "BF16"}) {
    Json header = {{"__metadata__", metadata()}};
    header[query + ".lora_A"] = tests::entry(dtype, {4, 3}, 0, 24);
    const std::string content = tests::raw_safetensors(header, std::string(24, '\0'));
    const auto error = error_of([&] { rows_of(content, lora()); });
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(culprits(*error), (Culprits{{code::wrong_dtype, query + ".lora_A"}}));
  }
}

TEST(Bound, EverythingWrongIsNamedAtOnce) {
  Tensors tensors = everything();
  tensors.erase(query + ".lora_A");
  tensors[dense + ".lora_B"].values[0] = std::nanf("");
  tensors[dense + ".lora_A"] = filled({3, 2});
  tensors[block + ".bottleneck.up"] = filled({5});
  tensors["strange"] = filled({1});
  const Error error = refused(tensors, styles(), every_slot());
  EXPECT_EQ(culprits(error), (Culprits{{code::half_missing, query},
                                       {code::not_finite, dense + ".lora_B"},
                                       {code::wrong_shape, dense + ".lora_A"},
                                       {code::wrong_shape, block + ".bottleneck.up"},
                                       {code::unknown_site, "strange"}}));
  const std::string message = error.what();
  for (const char* said : {"lora_B only", "1 NaN or Inf of 12 values", "3 features", "shape [5]", "[width, 4]"}) {
    EXPECT_NE(message.find(said), std::string::npos) << said << ": " << message;
  }
}

TEST(Bound, SizesAreLimitedAndAgree) {
  Tensors tensors = pairs();
  tensors[query + ".lora_A"] = filled({4, 5});
  EXPECT_EQ(culprits(refused(tensors, metadata(), lora())),
            (Culprits{{code::wrong_shape, query}, {code::rank_above_max, query}}));
  tensors[query + ".lora_B"] = filled({5, 4});
  EXPECT_EQ(culprits(refused(tensors, metadata(), lora())), (Culprits{{code::rank_above_max, query}}));
  tensors[query + ".lora_A"] = filled({4, 4});
  tensors[query + ".lora_B"] = filled({4, 4});
  EXPECT_NO_THROW(rows_of(tests::safetensors(tensors, metadata()), lora()));
  tensors = everything();
  for (const char* factor : {"down", "down_bias", "up"}) {
    tests::Tensor& tensor = tensors[block + ".bottleneck." + factor];
    for (std::int64_t& size : tensor.shape) size = size == 5 ? 9 : size;
    tensor = filled(tensor.shape);
  }
  EXPECT_EQ(culprits(refused(tensors, styles(), every_slot())), (Culprits{{code::rank_above_max, block}}));
}

TEST(Bound, ValuesThatAreNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {std::nanf(""), infinity, -infinity}) {
    Tensors tensors = pairs();
    tensors[query + ".lora_A"].values[5] = value;
    tensors[query + ".lora_A"].values[7] = value;
    const Error error = refused(tensors, metadata(), lora());
    EXPECT_EQ(culprits(error), (Culprits{{code::not_finite, query + ".lora_A"}}));
    EXPECT_EQ(error.problems().at(0).got, "2 NaN or Inf of 12 values (scaling included)");
  }
}

TEST(Bound, ValuesThatThePrecisionCannotHold) {
  const std::string name = query + ".lora_A";
  const auto refuse = [&](float value, const char* dtype) {
    Tensors tensors = pairs();
    tensors[name].values[11] = value;
    const auto error = error_of([&] { rows_of(tests::safetensors(tensors, metadata()), every_slot(dtype)); });
    if (!error.has_value()) return std::string();
    EXPECT_EQ(culprits(*error), (Culprits{{code::overflow, name}}));
    return error->problems()[0].got + ", " + error->problems()[0].expected;
  };
  EXPECT_EQ(refuse(65504.0F, "fp16"), "");
  EXPECT_EQ(refuse(-65504.0F, "fp16"), "");
  // 65505 would be rounded to 65504, and is refused as it is by the Python runtime
  EXPECT_EQ(refuse(65505.0F, "fp16"), "65505 after scaling, at most 65504 (fp16)");
  EXPECT_EQ(refuse(-7e9F, "fp16"), "7e+09 after scaling, at most 65504 (fp16)");
  EXPECT_EQ(refuse(7e9F, "bf16"), "");
  EXPECT_EQ(refuse(3.4e38F, "bf16"), "3.4e+38 after scaling, at most 3.38953e+38 (bf16)");
  EXPECT_EQ(refuse(3.4e38F, "fp32"), "");
}

TEST(Bound, SlotsThatTheBundleDoesNotHave) {
  EXPECT_EQ(culprits(refused(pairs(), styles(), lora())),
            (Culprits{{code::no_slot, "bottleneck"}, {code::no_slot, "head"}}));
  Metadata said = styles();
  said["bottleneck"] = R"({"form": {"norm_before": true}, "activation": "relu"})";
  said["head"] = R"({"feature": "tokens", "activation": "relu", "labels": ["a", "b"]})";
  Tensors tensors = everything();
  tensors[block + ".bottleneck.norm_before_weight"] = filled({4});
  const Error error = refused(tensors, said, every_slot());
  EXPECT_EQ(culprits(error), (Culprits{{code::no_slot, "bottleneck"}, {code::no_slot, "head"}}));
  EXPECT_EQ(error.problems().at(0).got, "(norm_before=True) with relu");
  EXPECT_EQ(error.problems().at(0).expected,
            "(plain) or (input=normed, skip=sum, close=False, norm_after=sum) with relu, gelu");
  EXPECT_EQ(error.problems().at(1).got, "a head on tokens with relu");
}

TEST(Bound, TensorsAndStylesBelongTogether) {
  EXPECT_EQ(culprits(refused(everything(), metadata(), every_slot())),
            (Culprits{{code::bad_config, "bottleneck"}, {code::bad_config, "head"}}));
  EXPECT_EQ(culprits(refused(pairs(), styles(), every_slot())),
            (Culprits{{code::bad_config, "bottleneck"}, {code::bad_config, "head"}}));
  Tensors tensors = everything();
  tensors.erase(block + ".bottleneck.norm_after_bias");
  tensors.erase("adapter_head.deep");
  EXPECT_EQ(culprits(refused(tensors, styles(), every_slot())),
            (Culprits{{code::half_missing, block}, {code::half_missing, "the head"}}));
  tensors = everything();
  tensors["adapter_head.out"] = filled({4, 2});
  EXPECT_EQ(culprits(refused(tensors, styles(), every_slot())), (Culprits{{code::bad_config, "the head"}}));
}

TEST(Bound, NamesForAnotherNumberOfLabels) {
  Metadata said = styles();
  said["head"] = R"({"feature": "pooler", "activation": "relu", "labels": ["a"]})";
  EXPECT_EQ(culprits(refused(everything(), said, every_slot())), (Culprits{{code::bad_config, "labels"}}));
}

TEST(Bound, CodesAreNoAdaptersToBring) {
  Tensors tensors = everything();
  for (const std::string& name : {block + ".bottleneck.code", std::string("adapter_uses.linear")}) {
    tensors[name] = filled({});
  }
  EXPECT_EQ(
      culprits(refused(tensors, styles(), every_slot())),
      (Culprits{{code::unknown_site, block + ".bottleneck.code"}, {code::unknown_site, "adapter_uses.linear"}}));
}

}  // namespace
}  // namespace adexport::core
