#include "json.hpp"

#include <gtest/gtest.h>

#include <string>

namespace adexport::core::json {
namespace {

std::string repeated(const std::string& text) {
  try {
    parse(text);
  } catch (const RepeatedKeys& error) {
    return error.what();
  }
  return "none";
}

TEST(Json, KeepsWhatIsThere) {
  const Value value = parse(R"( {"a": [1, -2, 1.0, 1e2, true, null, "é\u00e9\ud83d\ude00"], "b": {}} )");
  EXPECT_EQ(repr(value), "{'a': [1, -2, 1.0, 100.0, True, None, 'éé😀'], 'b': {}}");
  const auto* object = value.as<Object>();
  ASSERT_NE(object, nullptr);
  EXPECT_NE(find(*object, "a"), nullptr);
  EXPECT_EQ(find(*object, "c"), nullptr);
}

TEST(Json, IntegersAreNotRounded) {
  EXPECT_EQ(*parse("9223372036854775807").as<std::int64_t>(), INT64_MAX);
  EXPECT_EQ(*parse("-9223372036854775808").as<std::int64_t>(), INT64_MIN);
  EXPECT_EQ(*parse("18446744073709551615").as<std::uint64_t>(), UINT64_MAX);
  EXPECT_NE(parse("18446744073709551616").as<double>(), nullptr);
  EXPECT_NE(parse("1.0").as<double>(), nullptr);
}

class NoJson : public testing::TestWithParam<std::string> {};

TEST_P(NoJson, IsRefused) {
  EXPECT_THROW(parse(GetParam()), SyntaxError);
}

INSTANTIATE_TEST_SUITE_P(Texts, NoJson,
                         testing::Values("", " ", "{", "{'a': 1}", "{}{}", "[1,]", "{\"a\":1,}", "01", "1.", ".5",
                                         "+1", "NaN", "Infinity", "-Infinity", "nul", "\"", "\"\n\"", "\"\\x\"",
                                         "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\"", "\xff\xfe", "\"\xff\"",
                                         "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"",
                                         "\xef\xbb\xbf{}", "// c\n{}", "1e999", std::string("{}\0garbage", 10),
                                         std::string("\"\0\"", 3), std::string("{}\0", 3)));

TEST(Json, NestingIsBounded) {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse(nested(200)));
  EXPECT_THROW(parse(nested(201)), SyntaxError);
  EXPECT_THROW(parse(std::string(1'000'000, '[')), SyntaxError);
  std::string objects;
  for (int depth = 0; depth < 100'000; ++depth) objects += "{\"a\":";
  EXPECT_THROW(parse(objects), SyntaxError);
}

TEST(Json, ValuesAreCounted) {
  std::string many = "[0";
  for (int index = 0; index < 10'000'000; ++index) many += ",0";
  EXPECT_THROW(parse(many + "]"), SyntaxError);
}

TEST(Json, RepeatedKeysAreAllNamed) {
  EXPECT_EQ(repeated(R"({"a": 1, "b": 2})"), "none");
  EXPECT_EQ(repeated(R"({"b": 1, "a": 1, "b": 2, "a": 2, "c": 1})"), "a, b");
  EXPECT_EQ(repeated(R"([{"x": {"q": 1, "q": 1}, "x": 2}])"), "q");
  EXPECT_EQ(repeated(R"({"a": 1, "\u0061": 1})"), "a");
  EXPECT_EQ(repeated(R"({"": 1, "": 1})"), "");
  EXPECT_EQ(repeated(R"([{"a": 1}, {"a": 1}])"), "none");
}

TEST(Json, BytesThatAreNoTextAreToldFirst) {
  EXPECT_THROW(parse("[{\"a\": 1, \"a\": 2}, \"\xff\"]"), SyntaxError);
  EXPECT_THROW(parse("[{\"a\": 1, \"a\": 2}, 3"), RepeatedKeys);
}

TEST(Json, RepeatedKeysCanBeLookedForLater) {
  const Value value = parse(R"({"a": 1, "b": [{"c": 1, "c": 2}], "a": 3})", Keys::any);
  EXPECT_EQ(*find(*value.as<Object>(), "a")->as<std::int64_t>(), 3);
  EXPECT_THROW(check_keys(value), RepeatedKeys);
  EXPECT_NO_THROW(check_keys(parse(R"({"a": [{"b": 1}], "c": {"a": 1}})", Keys::any)));
}

TEST(Json, ReprIsThatOfPython) {
  EXPECT_EQ(repr(std::string_view("a")), "'a'");
  EXPECT_EQ(repr(std::string_view("it's")), "\"it's\"");
  EXPECT_EQ(repr(std::string_view("'\"")), "'\\'\"'");
  EXPECT_EQ(repr(std::string_view("a\n\t\r\\\x1b\x7f\0", 8)), "'a\\n\\t\\r\\\\\\x1b\\x7f\\x00'");
  EXPECT_EQ(repr(std::string_view("ä\u00a0")), "'ä\\xa0'");
  EXPECT_EQ(repr(std::string_view("\xff\xc3")), "'\\xff\\xc3'");
  EXPECT_EQ(repr(parse("[" + std::string(100, ' ') + "\"" + std::string(100, 'x') + "\"]")),
            "['" + std::string(78, 'x'));
  EXPECT_EQ(repr(parse("\"äöü\""), 3), "'äö");
}

}  // namespace
}  // namespace adexport::core::json
