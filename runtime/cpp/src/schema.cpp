#include "schema.hpp"

#include <algorithm>
#include <utility>

namespace adexport::core::schema {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_plain(char c) {
  return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool is_hex(std::string_view text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); });
}

bool is_relative_path(std::string_view text) {
  bool start = true;  // of a part
  for (const char c : text) {
    if (start ? !is_plain(c) : !is_plain(c) && c != '.' && c != '_' && c != '-' && c != '/') return false;
    start = c == '/';
  }
  return !start;
}

std::string read_pattern(const json::Value& value, const std::string& where, Violations& found,
                         bool (*matches)(std::string_view), std::string_view pattern) {
  const auto* text = value.as<std::string>();
  if (text != nullptr && matches(*text)) return *text;
  if (text == nullptr) {
    found.add(where, value, "Input should be a valid string");
  } else {
    found.add(where, value, "String should match pattern '" + std::string(pattern) + "'");
  }
  return {};
}

std::int64_t read_at_least(const json::Value& value, const std::string& where, Violations& found,
                           std::int64_t least, const char* words) {
  const std::size_t before = found.found().size();
  const std::int64_t integer = read_integer(value, where, found);
  if (found.found().size() == before && integer < least) found.add(where, value, words);
  return integer;
}

// "a, b or c"
std::string alternatives(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t index = 0; index < names.size(); ++index) {
    if (index > 0) text += index + 1 == names.size() ? " or " : ", ";
    text += names[index];
  }
  return text;
}

}  // namespace

void Violations::add(const std::string& where, const json::Value& got, std::string expected) {
  found_.push_back({where, json::repr(got), std::move(expected)});
}

std::string member_of(const std::string& where, std::string_view key) {
  return where.empty() ? std::string(key) : where + "." + std::string(key);
}

std::string read_text(const json::Value& value, const std::string& where, Violations& found) {
  const auto matches = [](std::string_view text) { return text.find('\0') == std::string_view::npos; };
  return read_pattern(value, where, found, matches, R"(^[^\x00]*$)");
}

std::string read_any_text(const json::Value& value, const std::string& where, Violations& found) {
  if (const auto* text = value.as<std::string>()) return *text;
  found.add(where, value, "Input should be a valid string");
  return {};
}

bool read_flag(const json::Value& value, const std::string& where, Violations& found) {
  if (const auto* flag = value.as<bool>()) return *flag;
  found.add(where, value, "Input should be a valid boolean");
  return false;
}

std::int64_t read_integer(const json::Value& value, const std::string& where, Violations& found) {
  if (const auto* integer = value.as<std::int64_t>()) return *integer;
  const bool large = value.as<std::uint64_t>() != nullptr;
  found.add(where, value, large ? "Input should be an integer of 64 bits" : "Input should be a valid integer");
  return 0;
}

std::int64_t read_positive(const json::Value& value, const std::string& where, Violations& found) {
  return read_at_least(value, where, found, 1, "Input should be greater than 0");
}

std::int64_t read_natural(const json::Value& value, const std::string& where, Violations& found) {
  return read_at_least(value, where, found, 0, "Input should be greater than or equal to 0");
}

std::string read_relative_path(const json::Value& value, const std::string& where, Violations& found) {
  return read_pattern(value, where, found, is_relative_path,
                      "^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$");
}

std::string read_fingerprint(const json::Value& value, const std::string& where, Violations& found) {
  const auto matches = [](std::string_view text) {
    return text.substr(0, 7) == "sha256:" && is_hex(text.substr(7));
  };
  return read_pattern(value, where, found, matches, "^sha256:[0-9a-f]{64}$");
}

std::string read_sha256(const json::Value& value, const std::string& where, Violations& found) {
  return read_pattern(value, where, found, is_hex, "^[0-9a-f]{64}$");
}

std::string Choice::operator()(const json::Value& value, const std::string& where, Violations& found) const {
  const auto* text = value.as<std::string>();
  if (text != nullptr && std::find(names_.begin(), names_.end(), *text) != names_.end()) return *text;
  std::vector<std::string> quoted;
  for (const std::string_view name : names_) quoted.push_back("'" + std::string(name) + "'");
  found.add(where, value, "Input should be " + alternatives(quoted));
  return std::string(names_.front());
}

std::int64_t NumberChoice::operator()(const json::Value& value, const std::string& where, Violations& found) const {
  const auto* integer = value.as<std::int64_t>();
  std::vector<std::string> shown;
  for (const std::int64_t number : numbers_) {
    if (integer != nullptr && *integer == number) return number;
    shown.push_back(std::to_string(number));
  }
  found.add(where, value,
            integer == nullptr ? "Input should be a valid integer" : "Input should be " + alternatives(shown));
  return numbers_.front();
}

Fields::Fields(const json::Value& value, std::string where, Violations& found)
    : value_(value), object_(value.as<json::Object>()), where_(std::move(where)), found_(found) {
  if (object_ == nullptr) found_.add(where_, value_, "Input should be an object");
}

const json::Value* Fields::ask(std::string_view key, bool needed) {
  if (object_ == nullptr) return nullptr;
  asked_.push_back(key);
  const json::Value* value = json::find(*object_, key);
  if (value == nullptr && needed) found_.add(member_of(where_, key), value_, "Field required");
  return value;
}

void Fields::close() {
  if (object_ == nullptr) return;
  for (const json::Member& member : *object_) {
    if (std::find(asked_.begin(), asked_.end(), member.key) == asked_.end()) {
      found_.add(member_of(where_, member.key), member.value, "Extra inputs are not permitted");
    }
  }
}

}  // namespace adexport::core::schema
