// Small manifests for tests.
#include "support.hpp"

namespace adexport::tests {
namespace {

Json slot(const std::string& name, Json shape, const std::string& identity = "zeros",
          const std::string& dtype = "float") {
  shape.insert(shape.begin(), "rows");
  return Json{{"name", name}, {"shape", shape}, {"identity", identity}, {"dtype", dtype}};
}

Json number(const std::string& name) {
  return slot(name, Json::array(), "zeros", "int64");
}

Json site(const std::string& path, int into, int out) {
  const std::string rank = path + ".rank";
  return Json{{"path", path},
              {"weight", path + ".weight"},
              {"bias", path + ".bias"},
              {"in_features", into},
              {"out_features", out},
              {"linear",
               {{"lora_A", slot(path + ".lora_A", {into, rank})},
                {"lora_B", slot(path + ".lora_B", {rank, out})},
                {"bias", nullptr},
                {"scale_in", nullptr},
                {"scale_out", nullptr}}}};
}

Json bottleneck_site(const std::string& path, const std::string& location) {
  const std::string stem = path + ".bottleneck.", width = stem + "width";
  return Json{{"path", path},
              {"layer", 0},
              {"location", location},
              {"features", 4},
              {"normed", true},
              {"slot",
               {{"down", slot(stem + "down", {4, width})},
                {"down_bias", slot(stem + "down_bias", Json::array({width}))},
                {"up", slot(stem + "up", {width, 4})},
                {"up_bias", slot(stem + "up_bias", Json::array({4}))},
                {"norm_before_weight", nullptr},
                {"norm_before_bias", nullptr},
                {"norm_after_weight", slot(stem + "norm_after_weight", Json::array({4}))},
                {"norm_after_bias", slot(stem + "norm_after_bias", Json::array({4}))},
                {"code", number(stem + "code")}}}};
}

Json head() {
  return Json{{"features", 4},
              {"inputs", {"first", "pooler"}},
              {"activations", {"tanh", "relu"}},
              {"own",
               {{"feature", "pooler"},
                {"out", "classifier"},
                {"dense", nullptr},
                {"activation", nullptr},
                {"biased", true}}},
              {"slot",
               {{"dense", slot("adapter_head.dense", {4, "adapter_head.mid"})},
                {"dense_bias", slot("adapter_head.dense_bias", Json::array({"adapter_head.mid"}))},
                {"deep", slot("adapter_head.deep", {"adapter_head.mid", "adapter_head.labels"})},
                {"out", slot("adapter_head.out", {4, "adapter_head.labels"})},
                {"out_bias", slot("adapter_head.out_bias", Json::array({"adapter_head.labels"}))},
                {"code", number("adapter_head.code")}}}};
}

Json input(const std::string& name, const Json& high, const Json& fill) {
  return Json{{"name", name}, {"dtype", "int64"}, {"shape", {"batch", "seq"}},
              {"low", 0},     {"high", high},     {"fill", fill}};
}

}  // namespace

std::string fingerprint() {
  return "sha256:" + std::string(64, 'a');
}

Json lora_manifest() {
  return Json{
      {"format_version", 3},
      {"base",
       {{"name", "tiny"},
        {"source", "tiny"},
        {"architecture", "BertModel"},
        {"model_type", "bert"},
        {"prefix", "bert"},
        {"task", "feature-extraction"},
        {"dtype", "fp32"},
        {"quantization", nullptr},
        {"fingerprint", fingerprint()},
        {"max_positions", 24},
        {"labels", Json::array()}}},
      {"opset", 23},
      {"slots", {"lora"}},
      {"inputs", {input("input_ids", 19, nullptr), input("attention_mask", 1, 1)}},
      {"outputs", {{{"name", "last_hidden_state"}, {"dtype", "fp32"}, {"shape", {"batch", "seq", 4}}}}},
      {"adapter_ids", "adapter_ids"},
      {"sites", {site("layer.0.query", 4, 4), site("layer.0.dense", 4, 6)}},
      {"bottlenecks", nullptr},
      {"head", nullptr},
      {"guards", {{"linear", number("adapter_uses.linear")}, {"bottleneck", nullptr}}},
      {"slot_rows", "bank"},
      {"generation", nullptr},
      {"limits", {{"max_rank", 4}, {"max_width", nullptr}}},
      {"modules", {"layer.0.query", "layer.0.dense"}},
      {"weights",
       {{{"name", "layer.0.query.weight"},
         {"path", "weights/fp32.bin"},
         {"offset", 0},
         {"shape", {4, 4}},
         {"transposed", true},
         {"checkpoint_transposed", false}}}},
      {"tokenizer", {{"file", "tokenizer.json"}, {"pad_id", 0}, {"pad_token", "[PAD]"}, {"max_length", 24}}},
      {"files",
       {{{"path", "model.onnx"}, {"bytes", 5}, {"sha256", std::string(64, '0')}},
        {{"path", "weights/fp32.bin"}, {"bytes", 3}, {"sha256", std::string(64, '1')}}}},
      {"tools", {{"torch", "2.13.0"}}}};
}

Json every_slot_manifest() {
  Json manifest = lora_manifest();
  manifest["base"]["task"] = "text-classification";
  manifest["base"]["labels"] = {"no", "yes"};
  manifest["slots"] = {"lora", "bias", "scale", "bottleneck", "head"};
  Json& linear = manifest["sites"][0]["linear"];
  linear["bias"] = slot("layer.0.query.adapter_bias", Json::array({4}));
  linear["scale_in"] = slot("layer.0.query.scale_in", Json::array({4}), "ones");
  linear["scale_out"] = slot("layer.0.query.scale_out", Json::array({4}), "ones");
  manifest["bottlenecks"] = Json{
      {"forms",
       {{{"input", "hidden"}, {"skip", "hidden"}, {"close", true}, {"norm_before", false}, {"norm_after", "none"}},
        {{"input", "normed"}, {"skip", "sum"}, {"close", false}, {"norm_before", false}, {"norm_after", "sum"}}}},
      {"activations", {"relu", "gelu"}},
      {"sites", {bottleneck_site("layer.0.out", "mh"), bottleneck_site("layer.0.end", "output")}}};
  manifest["head"] = head();
  manifest["guards"]["bottleneck"] = number("adapter_uses.bottleneck");
  manifest["limits"]["max_width"] = 8;
  return manifest;
}

Json generation_manifest() {
  Json manifest = lora_manifest();
  manifest["base"]["task"] = "text-generation";
  manifest["outputs"] = Json::array({{{"name", "logits"}, {"dtype", "fp32"}, {"shape", {"batch", "seq", 9}}}});
  manifest["generation"] = {{"lengths", "lengths"},
                            {"past_lengths", "past"},
                            {"logits_at", "at"},
                            {"caches",
                             {{{"past_key", "pk"},
                               {"past_value", "pv"},
                               {"present_key", "k"},
                               {"present_value", "v"},
                               {"kv_heads", 2},
                               {"size", 8},
                               {"window", nullptr}}}},
                            {"eos_ids", {2}}};
  manifest["adapter_ids"] = nullptr;
  manifest["slot_rows"] = "batch";
  return manifest;
}

}  // namespace adexport::tests
