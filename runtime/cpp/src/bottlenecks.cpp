// Slots where a block adds a sub-block's output to its input.
#include <algorithm>
#include <tuple>

#include "slots.hpp"

namespace adexport::core {
namespace {

using schema::Fields;
using schema::Violations;

BottleneckForm read_form(const json::Value& value, const std::string& where, Violations& found) {
  BottleneckForm form;
  Fields fields(value, where, found);
  fields.may("input", form.input, schema::Choice{"hidden", "normed", "residual"});
  fields.may("skip", form.skip, schema::Choice{"hidden", "input", "sum"});
  fields.may("close", form.close, schema::read_flag);
  fields.may("norm_before", form.norm_before, schema::read_flag);
  fields.may("norm_after", form.norm_after, schema::Choice{"none", "sum", "update"});
  fields.close();
  return form;
}

Factors read_slot(const json::Value& value, const std::string& where, Violations& found) {
  return read_factors(value, where, found,
                      {{"down", true},
                       {"down_bias", true},
                       {"up", true},
                       {"up_bias", true},
                       {"norm_before_weight", false},
                       {"norm_before_bias", false},
                       {"norm_after_weight", false},
                       {"norm_after_bias", false},
                       {"code", false}});
}

BottleneckSite read_bottleneck_site(const json::Value& value, const std::string& where, Violations& found) {
  BottleneckSite site;
  Fields fields(value, where, found);
  fields.take("path", site.path, schema::read_text);
  fields.take("layer", site.layer, schema::read_integer);
  fields.take("location", site.location, schema::Choice{"mh", "output"});
  fields.take("features", site.features, schema::read_positive);
  fields.take("normed", site.normed, schema::read_flag);
  fields.take("slot", site.slot, read_slot);
  fields.close();
  return site;
}

// Whether zero weights leave the base as it is.
bool neutral(const BottleneckForm& form) {
  if (form.norm_after != "none") return false;
  if (form.close) return form.skip == "hidden" || (form.skip == "input" && form.input == "hidden");
  return form.skip == "input" && form.input == "normed";
}

auto key_of(const BottleneckForm& form) {
  return std::tie(form.input, form.skip, form.close, form.norm_before, form.norm_after);
}

template <class Items, class Key>
bool repeats(const Items& items, Key key) {
  std::set<decltype(key(items.front()))> keys;
  for (const auto& item : items) keys.insert(key(item));
  return keys.size() != items.size();
}

Faults faults_of(const BottleneckSite& site, const std::set<std::string>& norms, std::size_t codes) {
  const Size features = site.features, width = "width";
  Faults wrong = shape_faults(site.slot, [&](const std::string& name) -> std::vector<Size> {
    if (name == "down") return {features, width};
    if (name == "down_bias") return {width};
    if (name == "up") return {width, features};
    if (name == "code") return {};
    return {features};
  });
  std::set<std::string> there;
  for (const auto& factor : site.slot) {
    if (factor.first.rfind("norm_", 0) == 0) there.insert(factor.first);
  }
  if (norms != there) wrong.push_back(site.path + " must have the norms of the forms and no others");
  if (codes > 1 && find(site.slot, "code") == nullptr) {
    wrong.push_back(site.path + " must have a code: there are " + std::to_string(codes) + " to pick from");
  }
  return wrong;
}

}  // namespace

bool BottleneckForm::operator==(const BottleneckForm& other) const {
  return key_of(*this) == key_of(other);
}

std::optional<std::int64_t> Bottlenecks::code(const BottleneckStyle& style) const {
  const auto form = std::find(forms.begin(), forms.end(), style.form);
  const auto activation = std::find(activations.begin(), activations.end(), style.activation);
  if (form == forms.end() || activation == activations.end()) return std::nullopt;
  return (form - forms.begin()) * static_cast<std::int64_t>(activations.size()) +
         (activation - activations.begin());
}

Bottlenecks read_bottlenecks(const json::Value& value, const std::string& where, Violations& found) {
  Bottlenecks bottlenecks;
  Fields fields(value, where, found);
  fields.take("forms", bottlenecks.forms, schema::list_of(read_form));
  fields.take("activations", bottlenecks.activations, schema::list_of(activations()));
  fields.take("sites", bottlenecks.sites, schema::list_of(read_bottleneck_site));
  fields.close();
  return bottlenecks;
}

BottleneckStyle read_bottleneck_style(const json::Value& value, const std::string& where, Violations& found) {
  BottleneckStyle style;
  Fields fields(value, where, found);
  fields.take("form", style.form, read_form);
  fields.take("activation", style.activation, activations());
  fields.close();
  return style;
}

Faults faults_of(const Bottlenecks& bottlenecks) {
  const auto& [forms, activations, sites] = bottlenecks;
  if (forms.empty() || activations.empty() || sites.empty()) {
    return {"bottlenecks must have forms, activations and sites"};
  }
  Faults wrong;
  if (!neutral(forms.front())) wrong.emplace_back("the first form of the bottlenecks must be neutral");
  const bool twice[] = {
      repeats(forms, key_of),
      repeats(activations, [](const std::string& name) { return name; }),
      repeats(sites, [](const BottleneckSite& site) { return std::pair(site.layer, site.location); }),
  };
  for (const bool repeated : twice) {
    if (repeated) wrong.emplace_back("a form, an activation or a place of the bottlenecks is listed twice");
  }
  std::set<std::string> norms;
  for (const BottleneckForm& form : forms) {
    for (std::string& norm : norms_of(form)) norms.insert(std::move(norm));
  }
  for (const BottleneckSite& site : sites) {
    for (std::string& fault : faults_of(site, norms, forms.size() * activations.size())) {
      wrong.push_back(std::move(fault));
    }
  }
  return wrong;
}

std::vector<std::string> norms_of(const BottleneckForm& form) {
  std::vector<std::string> norms;
  if (form.norm_before) norms.insert(norms.end(), {"norm_before_weight", "norm_before_bias"});
  if (form.norm_after != "none") norms.insert(norms.end(), {"norm_after_weight", "norm_after_bias"});
  return norms;
}

std::set<std::string> factors_of(const BottleneckForm& form) {
  std::set<std::string> factors = {"down", "down_bias", "up", "up_bias"};
  for (std::string& norm : norms_of(form)) factors.insert(std::move(norm));
  return factors;
}

std::string brief(const BottleneckForm& form) {
  const BottleneckForm plain;
  const auto word = [](bool flag) { return std::string(flag ? "True" : "False"); };
  std::string text;
  const auto differs = [&](const char* key, const std::string& value, const std::string& usual) {
    if (value != usual) text += (text.empty() ? "" : ", ") + std::string(key) + "=" + value;
  };
  differs("input", form.input, plain.input);
  differs("skip", form.skip, plain.skip);
  differs("close", word(form.close), word(plain.close));
  differs("norm_before", word(form.norm_before), word(plain.norm_before));
  differs("norm_after", form.norm_after, plain.norm_after);
  return "(" + (text.empty() ? "plain" : text) + ")";
}

}  // namespace adexport::core
