// The slots of a manifest: read from JSON, and what in them contradicts itself.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "schema.hpp"

namespace adexport::core {

using Faults = std::vector<std::string>;

std::vector<Size> read_shape(const json::Value& value, const std::string& where, schema::Violations& found);
Site read_site(const json::Value& value, const std::string& where, schema::Violations& found);
Bottlenecks read_bottlenecks(const json::Value& value, const std::string& where, schema::Violations& found);
Head read_head(const json::Value& value, const std::string& where, schema::Violations& found);
Factors read_guards(const json::Value& value, const std::string& where, schema::Violations& found);
BottleneckStyle read_bottleneck_style(const json::Value& value, const std::string& where,
                                      schema::Violations& found);
HeadStyle read_head_style(const json::Value& value, const std::string& where, schema::Violations& found);

Faults faults_of(const Site& site);
Faults faults_of(const Bottlenecks& bottlenecks);
Faults faults_of(const Head& head);
Faults faults_of_guards(const Factors& guards);

// Factors whose shape is not that of `expected` behind the rows; one name stands for one size. Lone numbers
// (codes, guards) are integers, and the identity of scales is one: no other factors are so.
Faults shape_faults(const Factors& factors, const std::function<std::vector<Size>(const std::string&)>& expected);

// The factors of a bottleneck's own norms.
std::vector<std::string> norms_of(const BottleneckForm& form);
// All the factors of a bottleneck of this form, or of such a head.
std::set<std::string> factors_of(const BottleneckForm& form);
std::set<std::string> factors_of(const HeadStyle& style);
// What differs from the plainest form, for people.
std::string brief(const BottleneckForm& form);

// A factor that a slot can have, and whether it must.
struct FactorName {
  const char* name;
  bool needed;
};
Factors read_factors(const json::Value& value, const std::string& where, schema::Violations& found,
                     const std::vector<FactorName>& names);

std::string text_of(const Size& size);
const schema::Choice& activations();

}  // namespace adexport::core
