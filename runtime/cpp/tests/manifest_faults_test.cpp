// Manifests whose parts contradict one another.
#include <gtest/gtest.h>

#include <functional>

#include "manifest.hpp"
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

Error refused(const Json& data) {
  const auto error = error_of([&] { parse_manifest(data.dump()); });
  return error.has_value() ? *error : Error(Kind::internal, "not refused", Problem{});
}

struct Contradiction {
  const char* what;
  std::function<void(Json&)> edit;
  const char* said;
};

std::function<void(Json&)> put(const char* path, Json value) {
  return [path, value = std::move(value)](Json& data) { apply(data, {path, value, ""}); };
}

void check(const Json& sound, const std::vector<Contradiction>& contradictions) {
  parse_manifest(sound.dump());
  for (const Contradiction& contradiction : contradictions) {
    Json data = sound;
    contradiction.edit(data);
    const Error error = refused(data);
    EXPECT_EQ(culprits(error), (Culprits{{code::bad_manifest, "manifest"}})) << contradiction.what;
    EXPECT_NE(std::string(error.what()).find(contradiction.said), std::string::npos)
        << contradiction.what << ": " << error.what();
  }
}

TEST(Manifest, LinearSlotsThatContradict) {
  check(lora_manifest(),
        {{"sites without adapter_ids", put("/adapter_ids", nullptr), "adapter_ids"},
         {"adapter_ids without sites", put("/sites", Json::array()), "adapter_ids"},
         {"sites without slots", put("/slots", Json::array()), "slots"},
         {"a site twice", [](Json& data) { data["sites"].push_back(Json(data["sites"][0])); },
          "site is listed twice"},
         {"an input twice", [](Json& data) { data["inputs"].push_back(Json(data["inputs"][0])); },
          "input is listed twice"},
         {"a slot input like an input", put("/sites/0/linear/lora_A/name", "input_ids"), "input is listed twice"},
         {"adapter_ids like an input", put("/adapter_ids", "input_ids"), "input is listed twice"},
         {"A of other features", put("/sites/0/in_features", 33), "query.lora_A must be [rows, 33, rank]"},
         {"B of other features", put("/sites/0/out_features", 9), "query.lora_B must be [rows, rank, 9]"},
         {"A of two sizes", put("/sites/0/linear/lora_A/shape", {"rows", 4}), "query.lora_A must be"},
         {"A without sizes", put("/sites/0/linear/lora_A/shape", Json::array()), "query.lora_A must be"},
         {"other ranks", put("/sites/0/linear/lora_A/shape/2", "another"), "query.lora_B must be"},
         {"A without B", put("/sites/0/linear/lora_B", nullptr), "must have lora_A and lora_B, or neither"},
         {"no factor", put("/sites/0/linear", Json::object()), "layer.0.query must have a factor"},
         {"a guard with a size", put("/guards/linear/shape", {"rows", 1}), "adapter_uses.linear must be [rows]"},
         {"rows of the batch", put("/slot_rows", "batch"), "slot_rows must be batch"}});
}

TEST(Manifest, SlotsThatContradict) {
  check(every_slot_manifest(),
        {{"bottlenecks that no slots name", put("/slots", {"lora", "bias", "scale", "head"}), "name bottleneck"},
         {"scales that no slots name", put("/slots", {"lora", "bias", "bottleneck", "head"}), "name scale"},
         {"a head that is not there", put("/head", nullptr), "name head"},
         {"a code of floats", put("/bottlenecks/sites/0/slot/code/dtype", "float"), "code must be int64"},
         {"a guard of floats", put("/guards/linear/dtype", "float"), "adapter_uses.linear must be int64"},
         {"weights of integers", put("/bottlenecks/sites/0/slot/up/dtype", "int64"), "bottleneck.up must be float"},
         {"scales that erase", put("/sites/0/linear/scale_out/identity", "zeros"),
          "query.scale_out must be float with ones"},
         {"a bias of ones", put("/head/slot/out_bias/identity", "ones"), "out_bias must be float with zeros"},
         {"a form twice",
          [](Json& data) { data["bottlenecks"]["forms"].push_back(Json(data["bottlenecks"]["forms"][0])); },
          "listed twice"},
         {"two at one place", put("/bottlenecks/sites/1/location", "mh"), "listed twice"},
         {"one path twice", put("/bottlenecks/sites/1/path", "layer.0.out"), "a site is listed twice"},
         {"no neutral form first", put("/bottlenecks/forms/0/skip", "sum"), "first form"},
         {"nothing to pick by", put("/bottlenecks/sites/0/slot/code", nullptr), "must have a code: there are 4"},
         {"a form without its norm", put("/bottlenecks/sites/0/slot/norm_after_bias", nullptr),
          "must have the norms"},
         {"no forms", put("/bottlenecks/forms", Json::array()), "must have forms, activations and sites"},
         {"labels of another size", put("/head/slot/out_bias/shape/1", "other"), "adapter_head.out_bias must be"},
         {"a head without activations", put("/head/activations", Json::array()), "inputs and activations"}});
}

TEST(Manifest, GenerationThatContradicts) {
  check(generation_manifest(),
        {{"no caches", put("/generation/caches", Json::array()), "needs caches"},
         {"a cache twice", put("/generation/caches/0/past_key", "pv"), "pv is listed twice"},
         {"a cache like an input", put("/generation/caches/0/past_key", "input_ids"), "input is listed twice"},
         {"another task", put("/base/task", "feature-extraction"), "text-generation alone"},
         {"an older version", put("/format_version", 2), "not known to version 2"},
         {"no end of positions", put("/base/max_positions", nullptr), "needs max_positions"},
         {"no inputs", put("/inputs", Json::array()), "input_ids and attention_mask alone"},
         {"no end of ids", put("/inputs/0/high", nullptr), "the high of input_ids"},
         {"no logits", put("/outputs", Json::array()), "the output logits alone"},
         {"rows of the batch without caches", put("/generation", nullptr), "slot_rows must be batch"},
         {"rows of the bank with caches",
          [](Json& data) {
            data["slot_rows"] = "bank";
            data["adapter_ids"] = "ids";
          },
          "slot_rows must be batch"}});
}

TEST(Manifest, Quantization) {
  Json data = lora_manifest();
  Json& quantization = data["base"]["quantization"];
  quantization = {{"method", "weight-only"}, {"bits", 8},           {"block_size", 32},
                  {"accuracy_level", 4},     {"embeddings", false}, {"lm_head", true}};
  EXPECT_EQ(parse_manifest(data.dump()).quantization->block_size, 32);
  check(data, {{"no level", put("/base/quantization/accuracy_level", nullptr), "accuracy_level"},
               {"no block", put("/base/quantization/block_size", nullptr), "block_size"},
               {"dynamic with a level", put("/base/quantization/method", "dynamic"), "accuracy_level"}});
  quantization = {{"method", "dynamic"},       {"bits", 8},           {"block_size", nullptr},
                  {"accuracy_level", nullptr}, {"embeddings", false}, {"lm_head", false}};
  check(data, {{"four bits", put("/base/quantization/bits", 4), "8 bits"},
               {"embeddings without a block", put("/base/quantization/embeddings", true), "block_size"}});
  for (const Edit& edit : std::vector<Edit>{{"/base/quantization/method", "static", "base.quantization.method"},
                                            {"/base/quantization/bits", 2, "base.quantization.bits"},
                                            {"/base/quantization/bits", 8.0, "base.quantization.bits"},
                                            {"/base/quantization/bits", "8", "base.quantization.bits"},
                                            {"/base/quantization/lm_head", 1, "base.quantization.lm_head"},
                                            {"/base/quantization/zero", 1, "base.quantization.zero"}}) {
    Json wrong = data;
    apply(wrong, edit);
    EXPECT_EQ(culprits(refused(wrong)), (Culprits{{code::bad_manifest, edit.subject}}));
  }
}

TEST(Manifest, ContradictionsAreNamedTogether) {
  Json data = lora_manifest();
  data["adapter_ids"] = nullptr;
  data["sites"][0]["in_features"] = 33;
  data["sites"][1]["out_features"] = 34;
  const std::string message = refused(data).what();
  for (const char* said : {"adapter_ids", "[rows, 33, rank]", "[rows, rank, 34]"}) {
    EXPECT_NE(message.find(said), std::string::npos) << message;
  }
}

// Whatever stands anywhere: a manifest, or an Error.
}  // namespace
}  // namespace adexport::core
