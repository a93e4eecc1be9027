#include "bundle.hpp"

#include <gtest/gtest.h>

#include "support.hpp"

namespace adexport::core {
namespace {

using tests::Culprits;
using tests::culprits;
using tests::error_of;

class BundleFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_.write("x.bundle/manifest.json", tests::lora_manifest().dump());
    folder_.write("x.bundle/model.onnx", "12345");
    folder_.write("x.bundle/weights/fp32.bin", "123");
  }
  [[nodiscard]] std::filesystem::path root() const { return folder_.path() / "x.bundle"; }
  Culprits refused(const std::filesystem::path& path) const {
    const auto error = error_of([&] { Bundle::open(path); });
    if (!error.has_value()) return {};
    EXPECT_EQ(error->kind(), Kind::bundle);
    return culprits(*error);
  }

  tests::TemporaryFolder folder_;
};

TEST_F(BundleFolder, Opens) {
  const Bundle bundle = Bundle::open(root());
  EXPECT_EQ(bundle.root, root());
  EXPECT_EQ(bundle.manifest.base_name, "tiny");
  EXPECT_EQ(bundle.model_path(), root() / "model.onnx");
  EXPECT_TRUE(bundle.adapters().empty());
}

TEST_F(BundleFolder, NoBundle) {
  folder_.write("file", "{}");
  std::filesystem::create_directory(folder_.path() / "empty");
  for (const char* name : {"absent", "empty", "file"}) {
    const std::filesystem::path path = folder_.path() / name;
    EXPECT_EQ(refused(path), (Culprits{{code::absent, (path / "manifest.json").string()}}));
  }
}

TEST_F(BundleFolder, EveryAbsentOrTruncatedFileIsNamed) {
  std::filesystem::remove(root() / "model.onnx");
  folder_.write("x.bundle/weights/fp32.bin", "12");
  EXPECT_EQ(refused(root()), (Culprits{{code::damaged, "model.onnx"}, {code::damaged, "weights/fp32.bin"}}));
  folder_.write("x.bundle/model.onnx", "123456");
  const auto error = error_of([&] { Bundle::open(root()); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->problems().at(0).got, "6 bytes");
  EXPECT_EQ(error->problems().at(0).expected, "5 bytes");
}

TEST_F(BundleFolder, ATruncatedManifest) {
  const std::string text = tests::lora_manifest().dump();
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{100}, text.size() - 1}) {
    const std::string path = folder_.write("x.bundle/manifest.json", text.substr(0, size)).string();
    EXPECT_EQ(refused(root()), (Culprits{{code::bad_manifest, path}}));
  }
}

TEST_F(BundleFolder, AdaptersAreFilesThatAreWhole) {
  for (const char* name : {"b.safetensors", "a.safetensors", "model.safetensors.safetensors", "README.md",
                           ".a.safetensors", ".a.safetensors.x1.part", "c.safetensors.part"}) {
    folder_.write(std::string("x.bundle/adapters/") + name, "");
  }
  const std::filesystem::path folder = root() / "adapters";
  const std::map<std::string, std::filesystem::path> expected = {
      {"a", folder / "a.safetensors"},
      {"b", folder / "b.safetensors"},
      {"model.safetensors", folder / "model.safetensors.safetensors"}};
  EXPECT_EQ(Bundle::open(root()).adapters(), expected);
}

TEST_F(BundleFolder, ANameIsNeverAPath) {
  const Bundle bundle = Bundle::open(root());
  EXPECT_EQ(bundle.adapter_path("a"), root() / "adapters" / "a.safetensors");
  EXPECT_EQ(error_of([&] { (void)bundle.adapter_path("../x"); }).value().problems().at(0).code, code::bad_name);
}

TEST(Names, Good) {
  for (const std::string& name : {std::string("a"), std::string("0"), std::string("A-b_c.d"), std::string(128, 'a'),
                                  std::string("a..b"), std::string("model.safetensors")}) {
    EXPECT_NO_THROW(check_name(name)) << name;
  }
}

TEST(Names, Bad) {
  const std::pair<std::string, std::string> names[] = {
      {"", "''"},           {".", "'.'"},
      {"..", "'..'"},       {"../x", "'../x'"},
      {"a/b", "'a/b'"},     {"-x", "'-x'"},
      {"_x", "'_x'"},       {".hidden", "'.hidden'"},
      {"a b", "'a b'"},     {"ä", "'ä'"},
      {"a\\b", "'a\\\\b'"}, {std::string("a\0", 2), "'a\\x00'"},
      {"a\n", "'a\\n'"},    {"~", "'~'"},
      {"C:x", "'C:x'"},     {std::string(129, 'a'), "'" + std::string(129, 'a') + "'"},
      {"\xff", "'\\xff'"}};
  for (const auto& [name, shown] : names) {
    const auto error = error_of([&, &text = name] { check_name(text); });
    ASSERT_TRUE(error.has_value()) << name;
    EXPECT_EQ(error->kind(), Kind::adapter);
    EXPECT_EQ(culprits(*error), (Culprits{{code::bad_name, shown}}));
  }
}

}  // namespace
}  // namespace adexport::core
