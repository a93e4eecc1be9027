// What the values of an input are: their types, their range, rows of a mask.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"

namespace adexport::core {

// As numpy names it: "float32", …
const char* numpy_name(Element element);

// Whether values of `given` may become `declared`: whole numbers are taken for floats, not the reverse.
bool fits_type(Element declared, Element given);

struct Outside {
  std::string low, high, lowest, highest;  // as found; as allowed
};

// Nothing if all values are in the range of the declared input, and of its type.
std::optional<Outside> out_of_range(const Input& spec, const Feed& feed);

// Values in another type; they are in its range.
std::shared_ptr<void> converted(const Feed& feed, Element element);
std::shared_ptr<void> filled(std::int64_t value, Element element, const std::vector<std::int64_t>& shape);

// Of a mask [batch, seq].
std::vector<std::int64_t> empty_rows(const Feed& mask);
std::vector<std::int64_t> row_sums(const Feed& mask);
// Rows that are not `length` times something and then zeros.
std::vector<std::int64_t> rows_with_holes(const Feed& mask, const std::vector<std::int64_t>& lengths);

}  // namespace adexport::core
