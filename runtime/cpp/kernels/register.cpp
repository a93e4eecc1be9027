// What ONNX Runtime calls when it loads the library.
#include <memory>
#include <vector>

#include "api.hpp"
#include "isa.hpp"
#include "operator.hpp"

#define ADEXPORT_EXPORT extern "C" __attribute__((visibility("default")))

namespace adexport::kernels {

void set_shape_api(const OrtApi& api);

namespace {

// For as long as the library is loaded: sessions keep pointers to them.
const std::vector<std::unique_ptr<Operator>>& operators(const Table& table) {
  static const auto all = [&] {
    std::vector<std::unique_ptr<Operator>> made;
    for (const Signature& signature : signatures()) {
      for (std::size_t pair = 0; pair < pair_count; ++pair) {
        made.push_back(std::make_unique<Operator>(signature, static_cast<Pair>(pair), table));
      }
    }
    return made;
  }();
  return all;
}

void add_operators(const OrtApi& api, OrtSessionOptions* options) {
  std::string refusal;
  const Table* table = chosen_table(refusal);
  if (table == nullptr) throw Misfit("adexport's kernels: " + refusal);
  set_shape_api(api);
  OrtCustomOpDomain* domain = nullptr;
  check(api, api.CreateCustomOpDomain("adexport", &domain));
  // never released: sessions that were made with it go on to use it
  for (const auto& op : operators(*table)) check(api, api.CustomOpDomain_Add(domain, op.get()));
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
  return guarded(*api, [&] { add_operators(*api, options); });
}

ADEXPORT_EXPORT const char* adexport_kernels_version() {
  return ADEXPORT_KERNELS_VERSION;
}

// The set of instructions that is used: avx512, avx2 or portable; empty if the one that was asked for cannot be.
ADEXPORT_EXPORT const char* adexport_kernels_isa() {
  std::string refusal;
  const adexport::kernels::Table* table = adexport::kernels::chosen_table(refusal);
  return table == nullptr ? "" : table->name;
}
