// Where things lie: folders that are odd or left behind, libraries by their names, more than one of them.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <thread>

#include "cases.hpp"

namespace adexport::testing {
namespace {

namespace fs = std::filesystem;

// A variable of the environment, for as long as this lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) before_ = old;
    ::setenv(name, value, 1);
  }
  ~Variable() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

class Places : public WithBundles {
 protected:
  void SetUp() override {
    WithBundles::SetUp();
    folder_ = fs::temp_directory_path() / ("adexport-places-" + std::to_string(::getpid()));
    here_ = fs::current_path();
    fs::create_directories(folder_);
  }
  void TearDown() override {
    fs::current_path(here_);
    fs::remove_all(folder_);
  }

  [[nodiscard]] fs::path copied(const std::string& bundle, const fs::path& name) const {
    const auto copy = folder_ / name;
    fs::copy(bundle_path(bundle), copy, fs::copy_options::recursive);
    return copy;
  }

  const std::vector<std::int64_t> ids_{5, 6, 7, 8, 9, 10};
  fs::path folder_, here_;
};

TEST_F(Places, ARelativeBundleOutlivesItsWorkingFolder) {
  fs::current_path(copied("encoder", "one.bundle").parent_path());
  auto engine = Engine::open("one.bundle", test_options());
  fs::current_path("/");
  EXPECT_FALSE(refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}}, {"a"}); }));
  EXPECT_FALSE(refusal([&] { engine.bind("b"); }));
}

TEST_F(Places, NamesOfFoldersAreBytes) {
  for (const std::string name : {"ü 漢.bundle", "\xff\xfe.bundle"}) {
    auto engine = Engine::open(copied("encoder", name).string(), test_options());
    EXPECT_FALSE(refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}}, {"a"}); }));
  }
}

TEST_F(Places, NoKernelsAreAskedForAsInPython) {
  auto options = test_options();
  options.kernels = "none";
  EXPECT_EQ(Engine::open(bundle_path("encoder"), options).kernels(), "");
  options.kernels.reset();
  {
    const Variable none("ADEXPORT_KERNELS", "none");
    EXPECT_EQ(Engine::open(bundle_path("encoder"), options).kernels(), "");
  }
  const Variable absent("ADEXPORT_KERNELS", "/nowhere/libadexport_kernels.so");
  EXPECT_EQ(refusal([&] { Engine::open(bundle_path("encoder"), options); })->kind(), Kind::dependency);
}

TEST_F(Places, AnEmptyLibraryIsNotTheProgramItself) {
  auto options = test_options();
  options.ort_library = "";
  const auto refused = refusal([&] { Engine::open(bundle_path("encoder"), options); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::dependency);
  EXPECT_EQ(refused->problems().front().subject, "ort_library");
}

TEST_F(Places, MoreRowsThanMemoryAreNamed) {
  auto options = test_options();
  options.rows = std::int64_t{1} << 62;
  const auto refused = refusal([&] { Engine::open(bundle_path("encoder"), options); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::request) << refused->what();
  EXPECT_EQ(refused->problems().front().subject, "rows");
}

TEST_F(Places, MoreTokensThanBytesCanCountAreNamed) {
  const auto bundle = copied("decoder", "endless.bundle");
  std::ifstream read(bundle / "manifest.json");
  std::string text((std::istreambuf_iterator<char>(read)), {});
  const std::string limit = "\"max_positions\": 64";
  const auto place = text.find(limit);
  ASSERT_NE(place, std::string::npos);
  text.replace(place, limit.size(), "\"max_positions\": 9223372036854775807");
  std::ofstream(bundle / "manifest.json") << text;
  auto engine = Engine::open(bundle.string(), test_options());
  Sampling sampling;
  sampling.max_new_tokens = std::numeric_limits<std::int64_t>::max() - 1;
  const auto refused = refusal([&] { engine.generate({{{1}, {}}, {{2}, {}}}, sampling); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::request);
  const auto bytes = refused->problems().front().got;
  EXPECT_GT(bytes.find(" bytes"), std::to_string(sampling.max_new_tokens).size()) << bytes;
}

// $ADEXPORT_OTHER_ORT_LIBRARY: of another version than the usual one.
TEST_F(Places, TwoLibrariesServeInOneProcess) {
  const char* other = std::getenv("ADEXPORT_OTHER_ORT_LIBRARY");
  if (other == nullptr) GTEST_SKIP() << "set ADEXPORT_OTHER_ORT_LIBRARY to a second libonnxruntime";
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      auto options = test_options();
      if (thread % 2 == 1) options.ort_library = other;
      for (const std::string name : {"encoder", "classifier", "deep", "decoder"}) {
        const auto expected = case_named(name + ".mixed");
        const auto refused = refusal([&] {
          auto engine = Engine::open(bundle_path(name), options);
          if (difference(engine.run(expected.inputs(), expected.adapters), expected) > 1e-5) ++wrong;
        });
        if (refused) {
          ADD_FAILURE() << refused->what();
          ++wrong;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace adexport::testing
