// Whether a graph takes what its manifest says.
#pragma once

#include <string>

#include "manifest.hpp"
#include "ort/library.hpp"

namespace adexport::core {

// Throws Kind::bundle, naming every input that differs, by its name or by the shape of a cache.
void check_graph(const OrtLibrary& ort, const OrtSession* session, const std::string& model,
                 const Manifest& manifest);

}  // namespace adexport::core
