#include "isa.hpp"

#include <cstdlib>

#if defined(ADEXPORT_KERNELS_X86)
#include <cpuid.h>
#endif

namespace adexport::kernels {

#if defined(ADEXPORT_KERNELS_X86)
namespace {

// __builtin_cpu_supports does not know this one in every compiler.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace
#endif

std::vector<const Table*> runnable_tables() {
  std::vector<const Table*> tables;
#if defined(ADEXPORT_KERNELS_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
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
