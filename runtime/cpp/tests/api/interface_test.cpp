// The C interface itself: sizes of structures, null arguments, what may be freed.
#include <cstddef>
#include <cstring>

#include "cases.hpp"

namespace adexport::testing {
namespace {

class Interface : public WithBundles {
 protected:
  // The error's kind and whether it names the subject; the error is freed.
  static bool refuses(adexport_error* error, const std::string& subject) {
    if (error == nullptr) return false;
    const Error copy(error);
    adexport_error_free(error);
    for (const auto& problem : copy.problems()) {
      if (problem.subject == subject) return copy.kind() == Kind::request;
    }
    ADD_FAILURE() << copy.what();
    return false;
  }
};

TEST_F(Interface, OldStructuresHaveDefaults) {
  // a caller from before `threads`: what lies there is not to be read
  adexport_engine_options options = ADEXPORT_ENGINE_OPTIONS_INIT;
  options.kernels = "";
  options.size = offsetof(adexport_engine_options, threads);
  options.threads = -5;
  options.provider_option_count = 1000;
  adexport_engine* engine = nullptr;
  adexport_error* error = adexport_engine_open(bundle_path("encoder").c_str(), &options, &engine);
  ASSERT_EQ(error, nullptr) << adexport_error_message(error);
  adexport_engine_close(engine);
}

TEST_F(Interface, NewerStructuresMustHoldNothingNew) {
  struct {
    adexport_engine_options known;
    std::int64_t added;
  } options{ADEXPORT_ENGINE_OPTIONS_INIT, 0};
  options.known.kernels = "";
  options.known.size = sizeof options;
  adexport_engine* engine = nullptr;
  adexport_error* error = adexport_engine_open(bundle_path("encoder").c_str(), &options.known, &engine);
  ASSERT_EQ(error, nullptr) << adexport_error_message(error);
  adexport_engine_close(engine);
  engine = nullptr;
  options.added = 1;
  EXPECT_TRUE(refuses(adexport_engine_open(bundle_path("encoder").c_str(), &options.known, &engine), "options"));
  options.known.size = 0;
  EXPECT_TRUE(
      refuses(adexport_engine_open(bundle_path("encoder").c_str(), &options.known, &engine), "options.size"));
  options.known.size = static_cast<std::size_t>(-1);
  EXPECT_TRUE(
      refuses(adexport_engine_open(bundle_path("encoder").c_str(), &options.known, &engine), "options.size"));
  EXPECT_EQ(engine, nullptr);
}

TEST_F(Interface, NullIsRefusedWhereSomethingIsNeeded) {
  adexport_engine* engine = nullptr;
  EXPECT_TRUE(refuses(adexport_engine_open(nullptr, nullptr, &engine), "bundle"));
  EXPECT_TRUE(refuses(adexport_engine_open("x", nullptr, nullptr), "engine"));
  EXPECT_TRUE(refuses(adexport_engine_bind(nullptr, "a", nullptr), "engine"));
  EXPECT_TRUE(refuses(adexport_engine_unbind(nullptr, nullptr), "name"));
  EXPECT_TRUE(refuses(adexport_engine_adapters(nullptr, nullptr), "names"));
  auto opened = open_engine("encoder");
  adexport_outputs* outputs = nullptr;
  EXPECT_TRUE(refuses(adexport_engine_run(opened.get(), nullptr, 1, nullptr, 0, &outputs), "inputs"));
  EXPECT_TRUE(refuses(adexport_engine_run(opened.get(), nullptr, 0, nullptr, 2, &outputs), "adapters"));
  EXPECT_TRUE(refuses(adexport_engine_run(opened.get(), nullptr, 0, nullptr, 0, nullptr), "outputs"));
  const std::int64_t shape[] = {1, 2};
  adexport_tensor tensor{"input_ids", ADEXPORT_INT64, nullptr, shape, 2};
  const int unknown = 9;
  static_assert(sizeof unknown == sizeof tensor.dtype);
  std::memcpy(&tensor.dtype, &unknown, sizeof unknown);
  EXPECT_TRUE(refuses(adexport_engine_run(opened.get(), &tensor, 1, nullptr, 0, &outputs), "inputs[0].dtype"));
  tensor.dtype = ADEXPORT_INT64;
  EXPECT_TRUE(refuses(adexport_engine_run(opened.get(), &tensor, 1, nullptr, 0, &outputs), "input_ids"));
  tensor.shape = nullptr;
  EXPECT_TRUE(refuses(adexport_engine_run(opened.get(), &tensor, 1, nullptr, 0, &outputs), "inputs[0].shape"));
  EXPECT_EQ(outputs, nullptr);
}

TEST_F(Interface, NothingMayBeFreedAndAsked) {
  adexport_error_free(nullptr);
  adexport_names_free(nullptr);
  adexport_outputs_free(nullptr);
  adexport_engine_close(nullptr);
  EXPECT_EQ(adexport_names_count(nullptr), 0U);
  EXPECT_EQ(adexport_names_get(nullptr, 0), nullptr);
  EXPECT_EQ(adexport_outputs_get(nullptr, 0).name, nullptr);
  EXPECT_EQ(adexport_outputs_label(nullptr, 0, 0), nullptr);
}

TEST_F(Interface, OverflowingShapesAreRefused) {
  auto engine = open_engine("encoder");
  const std::int64_t value = 1;
  const std::int64_t shape[] = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  const adexport_tensor tensor{"input_ids", ADEXPORT_INT64, &value, shape, 2};
  adexport_outputs* outputs = nullptr;
  EXPECT_TRUE(refuses(adexport_engine_run(engine.get(), &tensor, 1, nullptr, 0, &outputs), "input_ids"));
}

}  // namespace
}  // namespace adexport::testing
