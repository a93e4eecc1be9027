// From the body of a request to its rows.
#pragma once

#include <string>
#include <vector>

#include "batcher.hpp"

// Throws Refused, which names everything that is wrong with the body.
std::vector<Row> asked_rows(const std::string& body, std::size_t most);
// Whether this is an adapter's name: an id, never a path.
bool is_name(const std::string& text);
