// What a run gives back: arrays for the whole batch, and what each row of them means.
#pragma once

#include <string>
#include <vector>

#include "backend.hpp"

namespace adexport::core {

using Labels = std::vector<std::string>;

struct Outputs {
  std::vector<Array> arrays;   // float32, the batch first, in the manifest's order
  std::vector<Labels> labels;  // of each row; none for a row without a head
};

// Cut logits to the batch's widest head, and put minus infinity where a row has no label: the graph's are as
// wide as the widest head that is resident, and no argmax must fall beyond a row's own labels.
void cut_logits(Array& logits, const std::vector<Labels>& labels);

}  // namespace adexport::core
