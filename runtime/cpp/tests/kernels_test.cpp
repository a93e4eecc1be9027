// Which library of operators is taken: what the Python runtime would take.
#include "ort/kernels.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "errors.hpp"

namespace adexport::core {
namespace {

class Kernels : public ::testing::Test {
 protected:
  Kernels() {
    if (const char* variable = std::getenv("ADEXPORT_KERNELS"); variable != nullptr) before_ = variable;
    std::ofstream(library_) << "no library, but a file";
    ::unsetenv("ADEXPORT_KERNELS");
    beside_ = find_kernels(std::nullopt);
  }
  ~Kernels() override {
    std::filesystem::remove(library_);
    ::unsetenv("ADEXPORT_KERNELS");
    if (before_) ::setenv("ADEXPORT_KERNELS", before_->c_str(), 1);
  }

  std::filesystem::path library_ = std::filesystem::temp_directory_path() / "adexport-kernels-test.so";
  std::optional<std::string> before_;
  std::string beside_;
};

TEST_F(Kernels, AreThoseThatTheEnvironmentNames) {
  ::setenv("ADEXPORT_KERNELS", library_.c_str(), 1);
  EXPECT_EQ(find_kernels(std::nullopt), library_.string());
  EXPECT_EQ(find_kernels(std::string("none")), "");
  EXPECT_EQ(find_kernels(std::string()), "");
  ::setenv("ADEXPORT_KERNELS", "none", 1);
  EXPECT_EQ(find_kernels(std::nullopt), "");
  EXPECT_EQ(find_kernels(library_.string()), library_.string());
  ::setenv("ADEXPORT_KERNELS", "", 1);
  EXPECT_EQ(find_kernels(std::nullopt), beside_);
}

TEST_F(Kernels, AreRefusedWhereTheyAreNoFile) {
  ::setenv("ADEXPORT_KERNELS", library_.parent_path().c_str(), 1);
  EXPECT_THROW(find_kernels(std::nullopt), Error);
  EXPECT_THROW(find_kernels(std::string("None")), Error);
}

Problem refusal(const std::string& path) {
  try {
    check_kernels(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::dependency);
    EXPECT_EQ(error.problems().size(), 1U);
    EXPECT_EQ(error.problems().front().subject, path);
    return error.problems().front();
  }
  return {};
}

TEST_F(Kernels, AreOfTheInterfaceOfThisRuntime) {
  EXPECT_NO_THROW(check_kernels(STAND_IN_GOOD));
  const Problem other = refusal(STAND_IN_OTHER);
  EXPECT_EQ(other.code, code::version);
  EXPECT_EQ(other.got.rfind("interface ", 0), 0U);
  EXPECT_EQ(other.expected.rfind("interface ", 0), 0U);
  EXPECT_NE(other.got, other.expected);
  EXPECT_NE(other.mend, "");
  const Problem old = refusal(STAND_IN_OLD);
  EXPECT_EQ(old.code, code::version);
  EXPECT_EQ(old.got, "no interface number");
}

TEST_F(Kernels, AreNoOtherLibrary) {
  EXPECT_EQ(refusal("libm.so.6").code, code::package_missing);  // it loads, and has no kernels
  const Problem text = refusal(library_.string());
  EXPECT_EQ(text.code, code::package_missing);
  EXPECT_NE(text.got.find(library_.filename().string()), std::string::npos) << text.got;  // the loader's words
}

}  // namespace
}  // namespace adexport::core
