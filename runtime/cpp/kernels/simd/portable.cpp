#include "table_of.hpp"
#include "vector_portable.hpp"

namespace adexport::kernels {

const Table& portable_table() {
  static constexpr Table table = table_of<portable::Vector>("portable");
  return table;
}

}  // namespace adexport::kernels
