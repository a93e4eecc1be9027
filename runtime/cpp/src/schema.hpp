// Values of validated JSON documents: nothing undeclared is taken, nothing is converted, all violations are
// gathered. What is refused, and how it is worded, follows pydantic's strict mode, which the Python runtime has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "element.hpp"
#include "json.hpp"

namespace adexport::core::schema {

// What is wrong at one place of the document; `where` is empty for the whole.
struct Violation {
  std::string where, got, expected;
};

class Violations {
 public:
  void add(const std::string& where, const json::Value& got, std::string expected);
  // Of the whole document, where parts contradict one another.
  void add(std::string expected) { found_.push_back({{}, {}, std::move(expected)}); }
  [[nodiscard]] const std::vector<Violation>& found() const { return found_; }
  [[nodiscard]] bool none() const { return found_.empty(); }

 private:
  std::vector<Violation> found_;
};

// Readers of one value. They give something harmless where they find a violation.
// A text without NUL, where those who take it through the C interface would end it.
std::string read_text(const json::Value& value, const std::string& where, Violations& found);
// Any text: what no C string carries.
std::string read_any_text(const json::Value& value, const std::string& where, Violations& found);
bool read_flag(const json::Value& value, const std::string& where, Violations& found);
std::int64_t read_integer(const json::Value& value, const std::string& where, Violations& found);
std::int64_t read_positive(const json::Value& value, const std::string& where, Violations& found);
std::int64_t read_natural(const json::Value& value, const std::string& where, Violations& found);
// A path within a folder, of plain characters, no part of which starts with a dot.
std::string read_relative_path(const json::Value& value, const std::string& where, Violations& found);
// "sha256:" and 64 hex digits.
std::string read_fingerprint(const json::Value& value, const std::string& where, Violations& found);
// 64 hex digits.
std::string read_sha256(const json::Value& value, const std::string& where, Violations& found);

// One of some texts.
class Choice {
 public:
  Choice(std::initializer_list<std::string_view> names) : names_(names) {}
  std::string operator()(const json::Value& value, const std::string& where, Violations& found) const;

 private:
  std::vector<std::string_view> names_;
};

// One of some integers.
class NumberChoice {
 public:
  NumberChoice(std::initializer_list<std::int64_t> numbers) : numbers_(numbers) {}
  std::int64_t operator()(const json::Value& value, const std::string& where, Violations& found) const;

 private:
  std::vector<std::int64_t> numbers_;
};

std::string member_of(const std::string& where, std::string_view key);

// A list of what `read` reads.
template <class Read>
auto list_of(Read read) {
  return [read](const json::Value& value, const std::string& where, Violations& found) {
    std::vector<decltype(read(value, where, found))> items;
    const auto* array = value.as<json::Array>();
    if (array == nullptr) {
      found.add(where, value, "Input should be a valid array");
      return items;
    }
    items.reserve(array->size());
    for (std::size_t index = 0; index < array->size(); ++index) {
      items.push_back(read((*array)[index], member_of(where, std::to_string(index)), found));
    }
    return items;
  };
}

// What `read` reads, or null.
template <class Read>
auto or_null(Read read) {
  return [read](const json::Value& value, const std::string& where, Violations& found) {
    std::optional<decltype(read(value, where, found))> result;
    if (!value.is_null()) result = read(value, where, found);
    return result;
  };
}

// The fields of an object, read one by one; close() refuses those that were not asked for.
class Fields {
 public:
  Fields(const json::Value& value, std::string where, Violations& found);

  template <class Target, class Read>
  void take(std::string_view key, Target& target, Read read) {
    if (const json::Value* value = ask(key, true)) target = read(*value, member_of(where_, key), found_);
  }
  // The same where the field may be left out: the target keeps its default.
  template <class Target, class Read>
  void may(std::string_view key, Target& target, Read read) {
    if (const json::Value* value = ask(key, false)) target = read(*value, member_of(where_, key), found_);
  }
  void close();

 private:
  const json::Value* ask(std::string_view key, bool needed);

  const json::Value& value_;
  const json::Object* object_;
  std::string where_;
  Violations& found_;
  std::vector<std::string_view> asked_;
};

}  // namespace adexport::core::schema
