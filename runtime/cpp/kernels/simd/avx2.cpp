#include "table_of.hpp"
#include "vector_avx2.hpp"

namespace adexport::kernels {

const Table& avx2_table() {
  static constexpr Table table = table_of<avx2::Vector>("avx2");
  return table;
}

}  // namespace adexport::kernels
