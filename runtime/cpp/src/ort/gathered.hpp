// The rows of a bank that a run reads, side by side: what is copied to a device for one run.
#pragma once

#include <cstdint>
#include <vector>

#include "bank.hpp"

namespace adexport::core {

struct Gathered {
  std::vector<std::int64_t> ids;  // which of the gathered rows each row of the batch takes
  std::vector<BankArray> arrays;  // in the order of the slot inputs
};

// Rows that nobody has leased are not read. `at_least_one`: sizes of 0 become 1, filled with zeros, for
// engines that take no empty inputs.
Gathered gather(const BankArrays& bank, const std::int64_t* ids, std::size_t count, bool at_least_one);

}  // namespace adexport::core
