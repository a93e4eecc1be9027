// What ONNX Runtime calls when it loads the library.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
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
  return std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= wanted);
}

// For as long as the library is loaded: sessions keep pointers to them.
const std::vector<std::unique_ptr<Operator>>& operators(const Table& table, const std::string& version) {
  static const auto all = [&] {
    std::vector<std::unique_ptr<Operator>> made;
    for (const Signature& signature : signatures()) {
      // older ones follow a null pointer when they infer a shape where an input before the last was left out
      const Abilities can{at_least(version, 32) || !has_gaps(signature), at_least(version, 24)};
      for (std::size_t pair = 0; pair < pair_count; ++pair) {
        made.push_back(std::make_unique<Operator>(signature, static_cast<Pair>(pair), table, can));
      }
#if defined(ADEXPORT_KERNELS_CUDA)
      if (std::string_view(signature.name).substr(0, 4) == "Lora") {
        for (const Pair pair : {Pair::float_float, Pair::half_half}) {
          made.push_back(std::make_unique<Operator>(signature, pair, table, can, Device::cuda));
        }
      }
#endif
    }
    return made;
  }();
  return all;
}

void add_operators(const OrtApi& api, const std::string& version, OrtSessionOptions* options) {
  const Table* table = choice().table;
  if (table == nullptr) throw Misfit("adexport's kernels: " + choice().refusal);
  set_shape_api(api);
  OrtCustomOpDomain* domain = nullptr;
  check(api, api.CreateCustomOpDomain("adexport", &domain));
  // never released: sessions that were made with it go on to use it
  for (const auto& op : operators(*table, version)) check(api, api.CustomOpDomain_Add(domain, op.get()));
  check(api, api.AddCustomOpDomain(options, domain));
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

// The set of instructions that is used: avx512, avx2 or portable; empty if the one that was asked for cannot be.
ADEXPORT_EXPORT const char* adexport_kernels_isa() {
  const adexport::kernels::Table* table = adexport::kernels::choice().table;
  return table == nullptr ? "" : table->name;
}
