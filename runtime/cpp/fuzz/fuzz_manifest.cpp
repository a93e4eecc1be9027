// Any text: a manifest that says one thing, or an Error.
#include <cstdlib>

#include "errors.hpp"
#include "manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace adexport::core;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const Manifest manifest = parse_manifest(text);
    if (manifest.text != text || manifest.format_version < 1 || manifest.format_version > 3) std::abort();
    for (const SlotInput& slot : manifest.slot_inputs) {
      if (slot.shape.empty()) std::abort();
    }
  } catch (const Error& error) {
    if (error.kind() != Kind::bundle || error.problems().empty()) std::abort();
  }
  return 0;
}
