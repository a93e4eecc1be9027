// JSON values in messages, as the Python runtime prints them.
#include <array>
#include <charconv>
#include <cmath>

#include "json.hpp"
#include "utf8.hpp"

namespace adexport::core::json {
namespace {

std::string escaped(unsigned value) {
  static constexpr std::string_view digits = "0123456789abcdef";
  return {'\\', 'x', digits[(value >> 4) & 15U], digits[value & 15U]};
}

// Collects text up to a number of characters; what is beyond it is not even built.
class Writer {
 public:
  explicit Writer(std::size_t most) : left_(most) {}

  [[nodiscard]] bool full() const { return left_ == 0; }
  [[nodiscard]] std::string take() { return std::move(text_); }

  void put(std::string_view character) {
    if (full()) return;
    text_ += character;
    --left_;
  }
  void ascii(std::string_view text) {
    for (std::size_t at = 0; at < text.size() && !full(); ++at) put(text.substr(at, 1));
  }
  void quoted(std::string_view text) {
    const bool apostrophe = text.find('\'') != std::string_view::npos;
    const char quote = apostrophe && text.find('"') == std::string_view::npos ? '"' : '\'';
    ascii({&quote, 1});
    for (std::size_t at = 0; at < text.size() && !full();) {
      const std::size_t length = utf8_character(text, at);
      one(text.substr(at, length == 0 ? 1 : length), length, quote);
      at += length == 0 ? 1 : length;
    }
    ascii({&quote, 1});
  }
  void value(const Value& given) {
    if (full()) return;
    if (given.is_null()) ascii("None");
    if (const auto* flag = given.as<bool>()) ascii(*flag ? "True" : "False");
    if (const auto* integer = given.as<std::int64_t>()) ascii(std::to_string(*integer));
    if (const auto* natural = given.as<std::uint64_t>()) ascii(std::to_string(*natural));
    if (const auto* real = given.as<double>()) number(*real);
    if (const auto* text = given.as<std::string>()) quoted(*text);
    if (const auto* array = given.as<Array>()) {
      ascii("[");
      for (std::size_t index = 0; index < array->size() && !full(); ++index) {
        if (index > 0) ascii(", ");
        value((*array)[index]);
      }
      ascii("]");
    }
    if (const auto* object = given.as<Object>()) {
      ascii("{");
      for (std::size_t index = 0; index < object->size() && !full(); ++index) {
        if (index > 0) ascii(", ");
        quoted((*object)[index].key);
        ascii(": ");
        value((*object)[index].value);
      }
      ascii("}");
    }
  }

 private:
  void one(std::string_view text, std::size_t length, char quote) {
    const auto first = static_cast<unsigned char>(text[0]);
    const auto second = text.size() > 1 ? static_cast<unsigned char>(text[1]) : 0U;
    if (length == 0) return ascii(escaped(first));
    if (first == '\n') return ascii("\\n");
    if (first == '\r') return ascii("\\r");
    if (first == '\t') return ascii("\\t");
    if (first == '\\') return ascii("\\\\");
    if (first == static_cast<unsigned char>(quote)) return ascii(std::string("\\") + quote);
    if (first < 0x20 || first == 0x7F) return ascii(escaped(first));
    // the controls from U+0080 on, the hard space and the soft hyphen
    if (length == 2 && first == 0xC2 && (second <= 0xA0 || second == 0xAD)) return ascii(escaped(second));
    put(text);
  }
  void number(double given) {
    std::array<char, 64> buffer{};
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), given).ptr;
    const std::string_view text(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
    ascii(text);
    if (text.find_first_of(".en") == std::string_view::npos) ascii(".0");
  }

  std::string text_;
  std::size_t left_;
};

}  // namespace

std::string repr(const Value& value, std::size_t most) {
  Writer writer(most);
  writer.value(value);
  return writer.take();
}

std::string repr(std::string_view text) {
  Writer writer(SIZE_MAX);
  writer.quoted(text);
  return writer.take();
}

}  // namespace adexport::core::json
