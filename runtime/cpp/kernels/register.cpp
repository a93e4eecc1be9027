// What ONNX Runtime calls when it loads the library.
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <vector>

#include "api.hpp"
#include "isa.hpp"
#include "operator.hpp"

#define ADEXPORT_EXPORT extern "C" __attribute__((visibility("default")))

namespace adexport::kernels {

namespace {

// Made once: operators that sessions have must not change under them.
struct Choice {
  std::string refusal;
  const Table* table = chosen_table(refusal);
};

const Choice& choice() {
  static const Choice made;
  return made;
}

// Whether an input that may be left out stands before another.
bool has_gaps(const Signature& signature) {
  return std::any_of(signature.inputs.begin(), signature.inputs.end() - 1,
                     [](const Input& input) { return input.optional; });
}

bool at_least(const std::string& version, int wanted) {
  int major = 0;
  int minor = 0;
  const char* const end = version.data() + version.size();
  const auto first = std::from_chars(version.data(), end, major);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '.') return false;
  if (std::from_chars(first.ptr + 1, end, minor).ec != std::errc()) return false;
  return major > 1 || minor >= wanted;
}

using Operators = std::vector<std::unique_ptr<Operator>>;

Operators made_for(const OrtApi& api, const Table& table, const std::string& version) {
  Operators made;
  for (const Signature& signature : signatures()) {
    // older ones follow a null pointer when they infer a shape where an input before the last was left out
    const Abilities can{at_least(version, 32) || !has_gaps(signature), at_least(version, 24)};
    for (std::size_t pair = 0; pair < pair_count; ++pair) {
      made.push_back(std::make_unique<Operator>(api, signature, static_cast<Pair>(pair), table, can));
    }
#if defined(ADEXPORT_KERNELS_CUDA)
    if (std::string_view(signature.name).substr(0, 4) == "Lora") {
      for (const Pair pair : {Pair::float_float, Pair::half_half}) {
        made.push_back(std::make_unique<Operator>(api, signature, pair, table, can, Device::cuda));
      }
    }
#endif
  }
  return made;
}

// What sessions of one library of ONNX Runtime share.
struct Domain {
  OrtCustomOpDomain* domain = nullptr;
  Operators operators;
};

// For as long as the process lives: sessions keep pointers to them. A process may have several libraries of
// ONNX Runtime, of several versions; each has its own.
OrtCustomOpDomain* domain_of(const OrtApi& api, const Table& table, const std::string& version) {
  static auto& lock = *new std::mutex;
  static auto& made = *new std::map<const OrtApi*, Domain>;
  const std::scoped_lock guard(lock);
  Domain& own = made[&api];
  if (own.domain != nullptr) return own.domain;
  own.operators = made_for(api, table, version);
  OrtCustomOpDomain* created = nullptr;
  check(api, api.CreateCustomOpDomain("adexport", &created));
  std::unique_ptr<OrtCustomOpDomain, void (*)(OrtCustomOpDomain*)> domain(created, api.ReleaseCustomOpDomain);
  for (const auto& op : own.operators) check(api, api.CustomOpDomain_Add(created, op.get()));
  own.domain = domain.release();
  return own.domain;
}

void add_operators(const OrtApi& api, const std::string& version, OrtSessionOptions* options) {
  const Table* table = choice().table;
  if (table == nullptr) throw Misfit("adexport's kernels: " + choice().refusal);
  check(api, api.AddCustomOpDomain(options, domain_of(api, *table, version)));
}

}  // namespace

}  // namespace adexport::kernels

ADEXPORT_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace adexport::kernels;
  const OrtApi* api = base->GetApi(api_version);
  if (api == nullptr) {
    const OrtApi* oldest = base->GetApi(1);
    const std::string message =
        std::string("adexport's kernels need ONNX Runtime 1.23 or later, this is ") + base->GetVersionString();
    return oldest->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  return guarded(*api, [&] { add_operators(*api, base->GetVersionString(), options); });
}

ADEXPORT_EXPORT const char* adexport_kernels_version() {
  return ADEXPORT_KERNELS_VERSION;
}

// Which slots' functions the operators stand for; runtimes take a library of their own number only.
ADEXPORT_EXPORT std::int32_t adexport_kernels_interface() {
  return ADEXPORT_KERNELS_INTERFACE;
}

// The set of instructions that is used: avx512, avx2 or portable; empty if the one that was asked for cannot be.
ADEXPORT_EXPORT const char* adexport_kernels_isa() {
  const adexport::kernels::Table* table = adexport::kernels::choice().table;
  return table == nullptr ? "" : table->name;
}
