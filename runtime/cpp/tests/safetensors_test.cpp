#include "safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "support.hpp"

namespace adexport::core {
namespace {

using tests::bytes_of;
using tests::Culprits;
using tests::culprits;
using tests::entry;
using tests::error_of;
using tests::filled;
using tests::Json;
using tests::raw_safetensors;

const std::filesystem::path file_name = "folder/a.safetensors";

Culprits refused(const std::string& content) {
  const auto error = error_of([&] { parse_tensors(bytes_of(content), file_name); });
  if (!error.has_value()) return {};
  EXPECT_EQ(error->kind(), Kind::adapter);
  EXPECT_EQ(error->headline(), "a.safetensors is refused");
  return culprits(*error);
}

Culprits only(const char* code, const std::string& subject) {
  return {{code, subject}};
}
const Culprits damaged = only(code::damaged, file_name.string());

std::string valid() {
  return tests::safetensors({{"x.lora_A", {{2, 3}, {0, 1, 2, 3, 4, 5}}}, {"x.lora_B", filled({3, 2})}},
                            {{"key", "value"}});
}

TEST(Safetensors, ReadsWhatIsThere) {
  const tests::TemporaryFolder folder;
  const TensorFile file = read_tensors(folder.write("a.safetensors", valid()));
  EXPECT_EQ(file.metadata, (std::map<std::string, std::string>{{"key", "value"}}));
  ASSERT_EQ(file.tensors.size(), 2U);
  const TensorView& view = file.tensors.at("x.lora_A");
  EXPECT_EQ(view.dtype, "F32");
  EXPECT_EQ(view.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(view.count(), 6U);
  ASSERT_EQ(view.bytes, 24U);
  std::vector<float> values(6);
  std::memcpy(values.data(), view.data, view.bytes);
  EXPECT_EQ(values, (std::vector<float>{0, 1, 2, 3, 4, 5}));
}

TEST(Safetensors, TensorsLieInAnyOrderOfTheHeader) {
  const Json header = {{"b", entry("F32", {1}, 4, 8)},
                       {"s", entry("I64", Json::array(), 8, 16)},
                       {"a", entry("BF16", {2, 1}, 0, 4)}};
  const TensorFile file = parse_tensors(bytes_of(raw_safetensors(header, std::string(16, '\1'))), file_name);
  EXPECT_EQ(file.tensors.at("b").data - file.tensors.at("a").data, 4);
  EXPECT_EQ(file.tensors.at("s").count(), 1U);
}

TEST(Safetensors, EveryTruncationIsDamage) {
  const std::string content = valid();
  for (std::size_t size = 0; size < content.size(); ++size) ASSERT_EQ(refused(content.substr(0, size)), damaged);
}

TEST(Safetensors, TrailingBytesAreDamage) {
  EXPECT_EQ(refused(valid() + std::string(1, '\0')), damaged);
  EXPECT_EQ(refused(valid() + valid()), damaged);
}

TEST(Safetensors, AbsentFilesAreNamed) {
  const tests::TemporaryFolder folder;
  for (const auto& path : {folder.path() / "absent.safetensors", folder.path()}) {
    const auto error = error_of([&] { read_tensors(path); });
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(culprits(*error), only(code::absent, path.string()));
    EXPECT_FALSE(error->problems()[0].got.empty());
  }
}

TEST(Safetensors, WhatWasSavedByOthersIsNamed) {
  const std::pair<std::string, const char*> others[] = {
      {"PK\x03\x04 and so on", "zip"},
      {"\x80\x02}q", "pickle"},
      {"\x80\x05\x95", "pickle"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"},
  };
  for (const auto& [content, words] : others) {
    const auto error = error_of([&, &text = content] { parse_tensors(bytes_of(text), file_name); });
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(culprits(*error), only(code::not_safetensors, file_name.string()));
    EXPECT_NE(error->problems()[0].got.find(words), std::string::npos);
  }
  EXPECT_EQ(refused("\x80\x01}q"), damaged);
}

TEST(Safetensors, RepeatedKeysAreNamed) {
  const std::string x = entry("F32", {1}, 0, 4).dump(), data(4, '\0');
  EXPECT_EQ(refused(raw_safetensors("{\"x\": " + x + ", \"x\": " + x + "}", data)),
            only(code::duplicate_key, "header key x"));
  EXPECT_EQ(refused(raw_safetensors(R"({"__metadata__": {"n": "a", "n": "b"}, "x": )" + x + "}", data)),
            only(code::duplicate_key, "header key n"));
  EXPECT_EQ(refused(raw_safetensors(R"({"__metadata__": {}, "__metadata__": {}, "x": )" + x + "}", data)), damaged);
  EXPECT_EQ(
      refused(raw_safetensors(
          std::string(R"({"x": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})"), data)),
      damaged);
}

TEST(Safetensors, EmptyTensorsAreAllNamed) {
  const Json header = {
      {"a", entry("F32", {0, 4}, 0, 0)}, {"b", entry("F32", {4, 0}, 4, 4)}, {"c", entry("F32", {1}, 0, 4)}};
  EXPECT_EQ(refused(raw_safetensors(header, std::string(4, '\0'))),
            (Culprits{{code::empty_tensor, "a"}, {code::empty_tensor, "b"}}));
  EXPECT_EQ(refused(raw_safetensors(Json::object())), only(code::empty_tensor, file_name.string()));
  EXPECT_EQ(refused(raw_safetensors(Json{{"__metadata__", {{"format", "pt"}}}})),
            only(code::empty_tensor, file_name.string()));
}

TEST(Safetensors, NamesMustBeModulePaths) {
  const std::pair<std::string, const char*> names[] = {{"", "''"},
                                                       {"a/b", "'a/b'"},
                                                       {"../../x", "'../../x'"},
                                                       {"a\\b", "'a\\\\b'"},
                                                       {"a\nb", "'a\\nb'"},
                                                       {"\x1b[31m", "'\\x1b[31m'"},
                                                       {std::string("a\0b", 3), "'a\\x00b'"}};
  for (const auto& [name, shown] : names) {
    const Json header = {{name, entry("F32", {1}, 0, 4)}, {"good", entry("F32", {1}, 4, 8)}};
    EXPECT_EQ(refused(raw_safetensors(header, std::string(8, '\0'))),
              only(code::bad_name, std::string("tensor ") + shown));
  }
}

TEST(Safetensors, DtypesThatNoAdapterHas) {
  const std::pair<const char*, int> dtypes[] = {{"U16", 2}, {"U32", 4}, {"U64", 8}, {"F8_E8M0", 1}, {"C64", 8}};
  for (const auto& [dtype, size] : dtypes) {
    const Json header = {{"a", entry(dtype, {1}, 0, size)}, {"b", entry("F32", {1}, size, size + 4)}};
    EXPECT_EQ(refused(raw_safetensors(header, std::string(static_cast<std::size_t>(size) + 4, '\0'))),
              only(code::wrong_dtype, "a"));
  }
  EXPECT_EQ(refused(raw_safetensors(Json{{"a", entry("F4", {2}, 0, 1)}}, "x")), only(code::wrong_dtype, "a"));
}

TEST(Safetensors, AllBadEntriesAreNamedTogether) {
  const Json header = {
      {"a/b", entry("F32", {1}, 0, 4)}, {"empty", entry("F32", {0}, 4, 4)}, {"odd", entry("U32", {1}, 4, 8)}};
  EXPECT_EQ(
      refused(raw_safetensors(header, std::string(8, '\0'))),
      (Culprits{{code::bad_name, "tensor 'a/b'"}, {code::empty_tensor, "empty"}, {code::wrong_dtype, "odd"}}));
}

TEST(Safetensors, HeadersThatLie) {
  const Json one = entry("F32", {1}, 0, 4);
  const std::pair<const char*, std::string> headers[] = {
      {"size", Json{{"a", entry("F32", {2}, 0, 4)}}.dump()},
      {"overlap", Json{{"a", one}, {"b", one}}.dump()},
      {"hole", Json{{"a", one}, {"b", entry("F32", Json::array(), 5, 9)}}.dump()},
      {"hole at the start", Json{{"a", entry("F32", {1}, 4, 8)}}.dump()},
      {"backwards", Json{{"a", entry("F32", {1}, 4, 0)}}.dump()},
      {"beyond the end", Json{{"a", entry("F32", {4}, 0, 16)}}.dump()},
      {"negative", Json{{"a", entry("F32", {-1}, 0, 4)}}.dump()},
      {"fraction", Json{{"a", entry("F32", {1.0}, 0, 4)}}.dump()},
      {"overflow", Json{{"a", entry("F32", {std::int64_t{1} << 62, std::int64_t{1} << 62}, 0, 4)}}.dump()},
      {"overflow of bits", Json{{"a", entry("F64", {std::int64_t{1} << 60}, 0, 4)}}.dump()},
      {"overflow of an offset",
       R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 18446744073709551616]}})"},
      {"half a byte", Json{{"a", entry("F4", {3}, 0, 1)}}.dump()},
      {"unknown dtype", Json{{"a", entry("F99", {1}, 0, 4)}}.dump()},
      {"dtype of another type", R"({"a": {"dtype": {"F32": null}, "shape": [1], "data_offsets": [0, 4]}})"},
      {"metadata", Json{{"__metadata__", {{"rank", 4}}}, {"a", one}}.dump()},
      {"metadata list", Json{{"__metadata__", Json::array()}, {"a", one}}.dump()},
      {"no offsets", R"({"a": {"dtype": "F32", "shape": [1]}})"},
      {"three offsets", R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}})"},
      {"no object", R"({"a": ["F32", [1], [0, 4]]})"},
      {"list", R"(["a"])"},
      {"utf-16", "\xff\xfe{}"},
      {"byte order mark", "\xef\xbb\xbf" + Json{{"a", one}}.dump()},
      {"surrogate", R"({"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})"},
      {"behind a zero byte", Json{{"a", one}}.dump() + std::string("\0x", 2)},
      {"deep", std::string(5000, '{')},
      {"deeper", std::string(5'000'000, '[')},
  };
  for (const auto& [what, header] : headers) {
    for (const std::size_t size : {4U, 8U}) {
      EXPECT_EQ(refused(raw_safetensors(header, std::string(size, '\0'))), damaged) << what;
    }
  }
}

// Every field with every other JSON type, also those that a laxer reader would convert.
TEST(Safetensors, FieldsOfOtherTypes) {
  const Json values[] = {
      nullptr, true,   0,     4.0,       "F32",  "4",       Json::array(), Json::object(), {{"F32", nullptr}},
      {"F32"}, {true}, {4.0}, {nullptr}, {0, 4}, {0.0, 4.0}};
  const Json one = entry("F32", {1}, 0, 4);
  const auto check = [](const Json& header) {
    EXPECT_EQ(refused(raw_safetensors(header, "1234")), damaged) << header;
  };
  for (const Json& value : values) {
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      Json wrong = one;
      wrong[field] = value;
      if (wrong != one && !(field == std::string("shape") && value == Json::array())) check(Json{{"a", wrong}});
    }
    check(Json{{"a", value}});
    if (value != Json::object()) check(Json{{"a", one}, {"__metadata__", value}});
    if (!value.is_string()) check(Json{{"a", one}, {"__metadata__", {{"key", value}}}});
  }
}

TEST(Safetensors, AllFaultsOfTheHeaderAreNamedTogether) {
  const Json header = {{"a", entry("F99", {1}, 0, 4)}, {"b", 1}, {"__metadata__", nullptr}};
  const auto error = error_of([&] { parse_tensors(bytes_of(raw_safetensors(header, "1234")), file_name); });
  ASSERT_TRUE(error.has_value());
  for (const char* said : {"dtype of 'a'", "tensor 'b' is no object", "__metadata__ is no object"}) {
    EXPECT_NE(std::string(error->what()).find(said), std::string::npos) << error->what();
  }
}

TEST(Safetensors, LengthsThatLie) {
  for (const std::uint64_t length :
       {std::uint64_t{9}, std::uint64_t{100'000'001}, std::uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    std::string content(8, '\0');
    std::memcpy(content.data(), &length, sizeof length);
    EXPECT_EQ(refused(content + "{}      "), damaged) << length;
  }
}

TEST(Safetensors, HeadersMayHaveSpacesAndUnknownKeys) {
  Json one = entry("F32", {1}, 0, 4);
  one["more"] = {{"x", 1}};
  const Json header = {{"a", one}};
  const TensorFile file = parse_tensors(bytes_of(raw_safetensors("  " + header.dump() + " \n", "1234")), file_name);
  EXPECT_TRUE(file.metadata.empty());
  EXPECT_EQ(file.tensors.size(), 1U);
}

// Whatever the bytes are: a sound file, or an Error.
TEST(Safetensors, MutatedBytes) {
  std::mt19937 random(1);
  const std::string content = valid();
  const std::string words = "{}[]\",:0123456789abF\\u/-e. ";
  int sound = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string mutated = content;
    for (unsigned edits = random() % 4 + 1; edits > 0; --edits) {
      mutated[random() % mutated.size()] =
          random() % 2 == 0 ? static_cast<char>(random() % 256) : words[random() % words.size()];
    }
    try {
      const TensorFile file = parse_tensors(bytes_of(mutated), file_name);
      for (const auto& [name, view] : file.tensors) {
        ASSERT_FALSE(name.empty());
        ASSERT_GT(view.count(), 0U);
        ASSERT_GE(view.data, file.content->data());
        ASSERT_LE(view.data + view.bytes, file.content->data() + file.content->size());
      }
      ++sound;
    } catch (const Error& error) {
      ASSERT_FALSE(error.problems().empty());
    }
  }
  EXPECT_GT(sound, 0);
}

}  // namespace
}  // namespace adexport::core
