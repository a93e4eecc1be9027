// The operators: their names and inputs.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace adexport::kernels {

enum class Takes : unsigned char { flow, bank, integers, flag };

struct Input {
  std::string_view name;
  Takes takes;
  bool optional = false;
};

struct Signature {
  const char* name;
  std::vector<Input> inputs;
};

const std::vector<Signature>& signatures();

}  // namespace adexport::kernels
