#include "json.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "utf8.hpp"

namespace adexport::core::json {
namespace {

// As the parser behind the Python runtime; deeper than anything that is read here.
constexpr std::size_t deepest = 200;
// More than the largest header needs; bounds the memory that a small text can ask for.
constexpr std::size_t most_values = 10'000'000;

// The keys that are there more than once, sorted and joined; empty if none is.
std::string repeated(const Object& object) {
  std::vector<std::string_view> keys;
  keys.reserve(object.size());
  for (const Member& member : object) keys.emplace_back(member.key);
  std::sort(keys.begin(), keys.end());
  std::string twice;
  for (auto key = keys.begin(); key != keys.end();) {
    const auto next = std::upper_bound(key, keys.end(), *key);
    if (next - key > 1) {
      if (!twice.empty()) twice += ", ";
      twice += *key;
    }
    key = next;
  }
  return twice;
}

void check_object(const Object& object) {
  // A key can be empty, so the text of those that repeat tells nothing by being empty.
  if (object.size() < 2) return;
  const std::string twice = repeated(object);
  const auto empty = std::count_if(object.begin(), object.end(), [](const Member& m) { return m.key.empty(); });
  if (!twice.empty() || empty > 1) throw RepeatedKeys(twice);
}

// The message without the library's own name and without what it read, which can be anything.
std::string brief(const std::string& message) {
  const std::size_t start = message.find("] ");
  std::string text = start == std::string::npos ? message : message.substr(start + 2);
  return text.substr(0, text.find("; last read"));
}

// Builds values from the parser's events, which keep no stack of calls.
class Builder {
 public:
  explicit Builder(Keys keys) : keys_(keys) {}

  [[nodiscard]] Value take() { return std::move(root_); }

  bool null() { return add(std::monostate{}); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) {
    return value <= INT64_MAX ? add(static_cast<std::int64_t>(value)) : add(value);
  }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(std::vector<std::uint8_t>&) { return false; }
  bool key(std::string& value) {
    std::get<Object>(open_.back()->data).push_back({std::move(value), {}});
    return true;
  }
  bool start_object(std::size_t) { return open(Object{}); }
  bool end_object() {
    if (keys_ == Keys::unique) check_object(std::get<Object>(open_.back()->data));
    open_.pop_back();
    return true;
  }
  bool start_array(std::size_t) { return open(Array{}); }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) {
    throw SyntaxError(brief(error.what()));
  }

 private:
  // Where the next value belongs. Only the innermost container grows, so pointers to the outer ones hold.
  Value& place() {
    if (++count_ > most_values) throw SyntaxError("more than " + std::to_string(most_values) + " values");
    if (open_.empty()) return root_;
    if (auto* array = std::get_if<Array>(&open_.back()->data)) return array->emplace_back();
    return std::get<Object>(open_.back()->data).back().value;
  }
  template <class Content>
  bool add(Content content) {
    place().data = std::move(content);
    return true;
  }
  template <class Container>
  bool open(Container empty) {
    if (open_.size() >= deepest) throw SyntaxError("nested deeper than " + std::to_string(deepest));
    Value& value = place();
    value.data = std::move(empty);
    open_.push_back(&value);
    return true;
  }

  Keys keys_;
  Value root_;
  std::vector<Value*> open_;
  std::size_t count_ = 0;
};

}  // namespace

const Value* find(const Object& object, std::string_view key) {
  const auto found =
      std::find_if(object.rbegin(), object.rend(), [&](const Member& member) { return member.key == key; });
  return found == object.rend() ? nullptr : &found->value;
}

Value parse(std::string_view text, Keys keys) {
  // The library takes a zero byte for the end, and skips a byte order mark.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos) {
    throw SyntaxError("a zero byte at " + std::to_string(zero));
  }
  if (text.substr(0, 3) == "\xEF\xBB\xBF") throw SyntaxError("a byte order mark");
  // What is no text at all is told before anything in it is.
  if (const std::size_t end = utf8_end(text); end < text.size()) {
    throw SyntaxError("no UTF-8 at byte " + std::to_string(end));
  }
  Builder builder(keys);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

void check_keys(const Value& value) {
  if (const auto* array = value.as<Array>()) {
    for (const Value& item : *array) check_keys(item);
  } else if (const auto* object = value.as<Object>()) {
    for (const Member& member : *object) check_keys(member.value);
    check_object(*object);
  }
}

}  // namespace adexport::core::json
