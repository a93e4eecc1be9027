// Which set of instructions the kernels are run with.
#pragma once

#include <string>
#include <vector>

#include "table.hpp"

namespace adexport::kernels {

// The tables that this CPU can run, the best first.
std::vector<const Table*> runnable_tables();

// The best one, or the one that ADEXPORT_KERNELS_ISA names; null, and why, if that cannot be run.
const Table* chosen_table(std::string& refusal);

}  // namespace adexport::kernels
