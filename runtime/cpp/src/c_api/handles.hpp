// What the opaque types of the C interface are.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "adexport/adexport.h"
#include "engine.hpp"

struct adexport_engine {
  std::unique_ptr<adexport::core::Engine> engine;
  std::string provider;
};

struct adexport_names {
  std::vector<std::string> names;
};

struct adexport_outputs {
  adexport::core::Outputs outputs;
};
