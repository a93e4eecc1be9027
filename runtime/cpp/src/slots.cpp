#include "slots.hpp"

#include <algorithm>
#include <map>

namespace adexport::core {
namespace {

using schema::Fields;
using schema::Violations;

// A text or a positive number; what is neither is refused as both.
Size read_size(const json::Value& value, const std::string& where, Violations& found) {
  Violations of_text, of_number;
  const std::string name = schema::read_text(value, schema::member_of(where, "constrained-str"), of_text);
  if (of_text.none()) return name;
  const std::int64_t number = schema::read_positive(value, schema::member_of(where, "constrained-int"), of_number);
  if (of_number.none()) return number;
  for (const Violations* both : {&of_text, &of_number}) {
    found.add(both->found().front().where, value, both->found().front().expected);
  }
  return std::int64_t{0};
}

SlotInput read_slot_input(const json::Value& value, const std::string& where, Violations& found) {
  SlotInput slot;
  std::string identity = "zeros", dtype = "float";
  Fields fields(value, where, found);
  fields.take("name", slot.name, schema::read_text);
  fields.take("shape", slot.shape, read_shape);
  fields.may("identity", identity, schema::Choice{"zeros", "ones"});
  fields.may("dtype", dtype, schema::Choice{"float", "int64", "fp16", "bf16"});
  fields.close();
  slot.ones = identity == "ones";
  slot.dtype = element_named(dtype);  // none for "float"
  return slot;
}

Factors read_linear(const json::Value& value, const std::string& where, Violations& found) {
  return read_factors(
      value, where, found,
      {{"lora_A", false}, {"lora_B", false}, {"bias", false}, {"scale_in", false}, {"scale_out", false}});
}

// Whether the sizes behind the rows are the wanted ones; names that are met first stand for any size.
bool same(const std::vector<Size>& shape, const std::vector<Size>& wanted, std::map<std::string, Size>& sizes) {
  if (shape.size() != wanted.size() + 1) return false;
  for (std::size_t index = 0; index < wanted.size(); ++index) {
    const Size& size = shape[index + 1];
    const auto* name = std::get_if<std::string>(&wanted[index]);
    const Size& expected = name != nullptr ? sizes.emplace(*name, size).first->second : wanted[index];
    if (size != expected) return false;
  }
  return true;
}

}  // namespace

std::vector<Size> read_shape(const json::Value& value, const std::string& where, Violations& found) {
  return schema::list_of(read_size)(value, where, found);
}

std::string text_of(const Size& size) {
  if (const auto* name = std::get_if<std::string>(&size)) return *name;
  return std::to_string(std::get<std::int64_t>(size));
}

const schema::Choice& activations() {
  static const schema::Choice choice{"relu", "gelu", "gelu_new", "silu", "tanh", "linear"};
  return choice;
}

const SlotInput* find(const Factors& factors, std::string_view name) {
  const auto found =
      std::find_if(factors.begin(), factors.end(), [&](const auto& factor) { return factor.first == name; });
  return found == factors.end() ? nullptr : &found->second;
}

Factors read_factors(const json::Value& value, const std::string& where, Violations& found,
                     const std::vector<FactorName>& names) {
  Factors factors;
  Fields fields(value, where, found);
  for (const FactorName& factor : names) {
    std::optional<SlotInput> slot;
    if (factor.needed) {
      fields.take(factor.name, slot, read_slot_input);
    } else {
      fields.may(factor.name, slot, schema::or_null(read_slot_input));
    }
    if (slot.has_value()) factors.emplace_back(factor.name, std::move(*slot));
  }
  fields.close();
  return factors;
}

Faults shape_faults(const Factors& factors, const std::function<std::vector<Size>(const std::string&)>& expected) {
  Faults wrong;
  std::map<std::string, Size> sizes;
  for (const auto& [name, factor] : factors) {
    const std::vector<Size> wanted = expected(name);
    const bool number = wanted.empty();
    const bool ones = name.rfind("scale", 0) == 0;
    if ((factor.dtype == Element::int64) != number || factor.ones != ones) {
      wrong.push_back(factor.name + " must be " + (number ? "int64" : "float") + " with " +
                      (ones ? "ones" : "zeros") + " for the identity");
    }
    if (same(factor.shape, wanted, sizes)) continue;
    std::string shape = "rows";
    for (const Size& size : wanted) shape += ", " + text_of(size);
    wrong.push_back(factor.name + " must be [" + shape + "]");
  }
  return wrong;
}

Site read_site(const json::Value& value, const std::string& where, Violations& found) {
  Site site;
  Fields fields(value, where, found);
  fields.take("path", site.path, schema::read_text);
  fields.take("weight", site.weight, schema::read_text);
  fields.may("bias", site.bias, schema::or_null(schema::read_text));
  fields.take("in_features", site.in_features, schema::read_positive);
  fields.take("out_features", site.out_features, schema::read_positive);
  fields.take("linear", site.linear, read_linear);
  fields.close();
  return site;
}

Faults faults_of(const Site& site) {
  const Size into = site.in_features, out = site.out_features, rank = "rank";
  Faults wrong = shape_faults(site.linear, [&](const std::string& name) -> std::vector<Size> {
    if (name == "lora_A") return {into, rank};
    if (name == "lora_B") return {rank, out};
    if (name == "scale_in") return {into};
    return {out};
  });
  if ((find(site.linear, "lora_A") == nullptr) != (find(site.linear, "lora_B") == nullptr)) {
    wrong.push_back(site.path + " must have lora_A and lora_B, or neither");
  }
  if (site.linear.empty()) wrong.push_back(site.path + " must have a factor");
  return wrong;
}

Factors read_guards(const json::Value& value, const std::string& where, Violations& found) {
  return read_factors(value, where, found, {{"linear", false}, {"bottleneck", false}});
}

Faults faults_of_guards(const Factors& guards) {
  return shape_faults(guards, [](const std::string&) { return std::vector<Size>{}; });
}

}  // namespace adexport::core
