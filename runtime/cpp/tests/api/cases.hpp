// Bundles and cases that make_bundles.py made, and engines over them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "adexport/adexport.hpp"

namespace adexport::testing {

using Names = std::vector<std::optional<std::string>>;

// One file of cases.
struct Case {
  std::string file;
  std::string bundle;
  Names adapters;
  std::map<std::string, std::string> metadata;
  struct Array {
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> integers;
    std::vector<float> floats;
  };
  std::map<std::string, Array> arrays;  // "input.NAME", "output.NAME", …

  [[nodiscard]] std::vector<Tensor> inputs() const;
  [[nodiscard]] std::map<std::string, Array> outputs() const;
  // Of each row.
  [[nodiscard]] std::vector<std::vector<std::string>> labels() const;
};

std::vector<std::string> split(const std::string& text, char at);

// $ADEXPORT_TEST_BUNDLES; empty if it is not set.
std::filesystem::path test_folder();
std::string bundle_path(const std::string& name);
Case read_case(const std::filesystem::path& path);
Case case_named(const std::string& name);
// All that hold a run.
std::vector<std::string> run_cases();

// One thread, and no kernels unless the environment names them.
Options test_options();
Engine open_engine(const std::string& bundle);

// How far outputs are from what Python computed, at most, but at paddings, which nobody defines; labels and
// shapes must be the same.
double difference(const Outputs& outputs, const Case& expected);

// What `work` is refused with.
template <class Work>
std::optional<Error> refusal(Work work) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

// Skipped where there are no bundles.
class WithBundles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (test_folder().empty()) GTEST_SKIP() << "set ADEXPORT_TEST_BUNDLES to what make_bundles.py made";
  }
};

}  // namespace adexport::testing
