#include "table_of.hpp"
#include "vector_avx512.hpp"

namespace adexport::kernels {

const Table& avx512_table() {
  static constexpr Table table = table_of<avx512::Vector>("avx512");
  return table;
}

}  // namespace adexport::kernels
