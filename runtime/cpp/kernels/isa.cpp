#include "isa.hpp"

#include <cstdlib>

namespace adexport::kernels {

std::vector<const Table*> runnable_tables() {
  std::vector<const Table*> tables;
#if defined(ADEXPORT_KERNELS_X86)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) tables.push_back(&avx512_table());
  if (avx2) tables.push_back(&avx2_table());
#endif
  tables.push_back(&portable_table());
  return tables;
}

const Table* chosen_table(std::string& refusal) {
  const std::vector<const Table*> tables = runnable_tables();
  const char* wanted = std::getenv("ADEXPORT_KERNELS_ISA");
  if (wanted == nullptr || *wanted == '\0') return tables.front();
  std::string names;
  for (const Table* table : tables) {
    if (table->name == std::string(wanted)) return table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  refusal = "ADEXPORT_KERNELS_ISA is '" + std::string(wanted) + "', but this CPU can run " + names +
            ": name one of these, or unset it";
  return nullptr;
}

}  // namespace adexport::kernels
