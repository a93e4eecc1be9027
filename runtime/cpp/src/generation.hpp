// What a manifest says of generation and of quantization.
#pragma once

#include "manifest.hpp"
#include "slots.hpp"

namespace adexport::core {

Generation read_generation(const json::Value& value, const std::string& where, schema::Violations& found);
Quantization read_quantization(const json::Value& value, const std::string& where, schema::Violations& found);

// The names of all graph inputs that are not the caller's.
std::vector<std::string> inputs_of(const Generation& generation);

Faults faults_of(const Generation& generation);
Faults faults_of(const Quantization& quantization);
// What generation needs elsewhere in the manifest and does not find.
Faults generation_faults(const Manifest& manifest);

}  // namespace adexport::core
