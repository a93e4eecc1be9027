// Adapter names: opaque ids, never paths.
#include <algorithm>

#include "bundle.hpp"
#include "errors.hpp"
#include "json.hpp"

namespace adexport::core {
namespace {

bool is_plain(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool is_name(const std::string& name) {
  return !name.empty() && name.size() <= 128 && is_plain(name.front()) &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return is_plain(c) || c == '.' || c == '_' || c == '-'; });
}

}  // namespace

void check_name(const std::string& name) {
  if (is_name(name)) return;
  throw Error(Kind::adapter, "adapter name refused",
              Problem{code::bad_name,
                      json::repr(std::string_view(name)),
                      {},
                      "1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or a digit",
                      "a name is an id, never a path",
                      "give another name (--name on the command line)"});
}

}  // namespace adexport::core
