// JSON, read strictly: UTF-8, every key once, nesting and size bounded whatever the text is.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace adexport::core::json {

struct Value;
struct Member;
using Array = std::vector<Value>;
using Object = std::vector<Member>;  // in the order of the text

// Numbers with a fraction or an exponent, and integers beyond 64 bits, are doubles.
struct Value {
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object> data;

  template <class T>
  [[nodiscard]] const T* as() const {
    return std::get_if<T>(&data);
  }
  [[nodiscard]] bool is_null() const { return std::holds_alternative<std::monostate>(data); }
};

struct Member {
  std::string key;
  Value value;
};

// The last member of that key, as Python and Rust read it; null if there is none.
const Value* find(const Object& object, std::string_view key);

// A text that is no JSON; what() says where.
struct SyntaxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An object names a key twice, so two readers could read two things; what() has those keys, sorted.
struct RepeatedKeys : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Keys { unique, any };

// Throws SyntaxError; and RepeatedKeys where keys must be unique.
Value parse(std::string_view text, Keys keys = Keys::unique);

// Throws RepeatedKeys for what was parsed with Keys::any.
void check_keys(const Value& value);

// Values as Python's repr() has them, cut after `most` characters.
std::string repr(const Value& value, std::size_t most = 80);
// Bytes that are no UTF-8, and control characters, are escaped.
std::string repr(std::string_view text);

}  // namespace adexport::core::json
