// The head slot.
#include <algorithm>

#include "slots.hpp"

namespace adexport::core {
namespace {

using schema::Fields;
using schema::Violations;

const schema::Choice& features() {
  static const schema::Choice choice{"first", "pooler", "last", "tokens"};
  return choice;
}

// How the base's own head reads: needed to bind foreign adapters, not to run bound ones.
bool read_own(const json::Value& value, const std::string& where, Violations& found) {
  std::string text;
  std::optional<std::string> maybe;
  bool biased = true;
  Fields fields(value, where, found);
  fields.take("feature", text, features());
  fields.take("out", text, schema::read_text);
  fields.may("dense", maybe, schema::or_null(schema::read_text));
  fields.may("activation", maybe, schema::or_null(activations()));
  fields.may("biased", biased, schema::read_flag);
  fields.close();
  return true;
}

Factors read_slot(const json::Value& value, const std::string& where, Violations& found) {
  return read_factors(
      value, where, found,
      {{"dense", true}, {"dense_bias", true}, {"deep", true}, {"out", true}, {"out_bias", true}, {"code", true}});
}

}  // namespace

std::optional<std::int64_t> Head::code(const HeadStyle& style) const {
  const auto input = std::find(inputs.begin(), inputs.end(), style.feature);
  if (input == inputs.end()) return std::nullopt;
  auto activation = activations.begin();
  if (style.activation.has_value())
    activation = std::find(activations.begin(), activations.end(), *style.activation);
  if (style.activation.has_value() && activation == activations.end()) return std::nullopt;
  return 1 + (input - inputs.begin()) * static_cast<std::int64_t>(activations.size()) +
         (activation - activations.begin());
}

Head read_head(const json::Value& value, const std::string& where, Violations& found) {
  Head head;
  std::optional<bool> own;
  Fields fields(value, where, found);
  fields.take("features", head.features, schema::read_positive);
  fields.take("inputs", head.inputs, schema::list_of(features()));
  fields.take("activations", head.activations, schema::list_of(activations()));
  fields.take("own", own, schema::or_null(read_own));
  fields.take("slot", head.slot, read_slot);
  fields.close();
  return head;
}

HeadStyle read_head_style(const json::Value& value, const std::string& where, Violations& found) {
  HeadStyle style;
  Fields fields(value, where, found);
  fields.take("feature", style.feature, features());
  fields.take("activation", style.activation, schema::or_null(activations()));
  fields.take("labels", style.labels, schema::list_of(schema::read_text));
  fields.close();
  return style;
}

Faults faults_of(const Head& head) {
  if (head.inputs.empty() || head.activations.empty()) return {"a head must have inputs and activations"};
  const Size features = head.features, mid = "mid", labels = "labels";
  return shape_faults(head.slot, [&](const std::string& name) -> std::vector<Size> {
    if (name == "dense") return {features, mid};
    if (name == "dense_bias") return {mid};
    if (name == "deep") return {mid, labels};
    if (name == "out") return {features, labels};
    if (name == "out_bias") return {labels};
    return {};
  });
}

std::set<std::string> factors_of(const HeadStyle& style) {
  if (!style.activation.has_value()) return {"out", "out_bias"};
  return {"dense", "dense_bias", "deep", "out_bias"};
}

}  // namespace adexport::core
