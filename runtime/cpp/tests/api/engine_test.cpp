// Engines through the public header: the same numbers as the Python runtime, and what is refused.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "cases.hpp"

namespace adexport::testing {
namespace {

class RunCases : public ::testing::TestWithParam<std::string> {};

// With the same library, what differs are sums over paddings of other widths; another rounds elsewhere.
double tolerance(const Case& expected, const Engine& engine) {
  if (engine.ort_version() == expected.metadata.at("onnxruntime")) return 1e-6;
  return expected.file.find("half") != std::string::npos ? 1e-2 : 1e-5;
}

TEST_P(RunCases, AreAsPythonComputes) {
  const auto expected = case_named(GetParam());
  std::optional<Engine> engine;
  const auto refused = refusal([&] { engine.emplace(Engine::open(expected.bundle, test_options())); });
  if (refused && std::string(refused->what()).find("Could not find an implementation") != std::string::npos) {
    GTEST_SKIP() << refused->what();
  }
  ASSERT_FALSE(refused) << refused->what();
  const auto most = tolerance(expected, *engine);
  EXPECT_LE(difference(engine->run(expected.inputs(), expected.adapters), expected), most);
  EXPECT_LE(difference(engine->run(expected.inputs(), expected.adapters), expected), most) << "again";
}

INSTANTIATE_TEST_SUITE_P(All, RunCases, ::testing::ValuesIn(run_cases()), [](const auto& tested) {
  auto name = tested.param;
  std::replace_if(
      name.begin(), name.end(), [](char letter) { return letter == '.' || letter == '-'; }, '_');
  return name;
});
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(RunCases);

class Engines : public WithBundles {
 protected:
  const std::vector<std::int64_t> ids_{5, 6, 7, 8, 9, 10};
};

std::vector<float> values(const Output& output) {
  return {output.begin(), output.end()};
}

TEST_F(Engines, TellWhatTheyAre) {
  const auto engine = open_engine("encoder");
  EXPECT_EQ(engine.provider(), "CPUExecutionProvider");
  EXPECT_EQ(engine.adapters(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_NE(engine.ort_version().find('.'), std::string::npos);
  EXPECT_NE(engine.manifest().find("\"format_version\""), std::string::npos);
  EXPECT_EQ(version(), "0.1.0");
}

TEST_F(Engines, OneNameIsForAllRows) {
  auto engine = open_engine("encoder");
  const auto one = engine.run({{"input_ids", ids_, {2, 3}}}, {"a"});
  const auto two = engine.run({{"input_ids", ids_, {2, 3}}}, {"a", "a"});
  EXPECT_EQ(values(one.at(0)), values(two.at(0)));
  const auto none = engine.run({{"input_ids", ids_, {2, 3}}});
  EXPECT_NE(values(one.at(0)), values(none.at(0)));
}

TEST_F(Engines, NarrowIntegersBecomeWide) {
  auto engine = open_engine("encoder");
  const std::vector<std::int32_t> narrow(ids_.begin(), ids_.end());
  EXPECT_EQ(values(engine.run({{"input_ids", narrow, {2, 3}}}).at(0)),
            values(engine.run({{"input_ids", ids_, {2, 3}}}).at(0)));
}

TEST_F(Engines, BindAndUnbind) {
  auto engine = open_engine("encoder");
  const auto adapters = std::filesystem::path(bundle_path("encoder")) / "adapters";
  const auto before = values(engine.run({{"input_ids", ids_, {2, 3}}}, {"a"}).at(0));
  const auto b = values(engine.run({{"input_ids", ids_, {2, 3}}}, {"b"}).at(0));
  engine.bind("a", (adapters / "b.safetensors").string());
  EXPECT_EQ(values(engine.run({{"input_ids", ids_, {2, 3}}}, {"a"}).at(0)), b);
  engine.bind("a");
  EXPECT_EQ(values(engine.run({{"input_ids", ids_, {2, 3}}}, {"a"}).at(0)), before);
  engine.unbind("a");
  EXPECT_EQ(engine.adapters(), (std::vector<std::string>{"b", "c"}));
  const auto refused = refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}}, {"a", "b"}); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::unknown_adapter);
  EXPECT_TRUE(refused->has("unknown-adapter"));
  EXPECT_EQ(refusal([&] { engine.unbind("a"); })->kind(), Kind::unknown_adapter);
}

TEST_F(Engines, OutputsOutliveTheirEngine) {
  std::optional<Outputs> kept;
  std::vector<float> copied;
  {
    auto engine = open_engine("encoder");
    kept.emplace(engine.run({{"input_ids", ids_, {2, 3}}}, {"c"}));
    copied = values(kept->at(0));
    engine.run({{"input_ids", ids_, {3, 2}}}, {"a"});
  }
  EXPECT_EQ(values(kept->at(0)), copied);
}

TEST_F(Engines, FewRowsServeManyAdapters) {
  auto options = test_options();
  options.rows = 1;
  auto few = Engine::open(bundle_path("encoder"), options);
  auto many = open_engine("encoder");
  for (const std::string name : {"a", "b", "c", "a"}) {
    const auto one = values(few.run({{"input_ids", ids_, {2, 3}}}, {name}).at(0));
    const auto other = values(many.run({{"input_ids", ids_, {2, 3}}}, {name}).at(0));
    ASSERT_EQ(one.size(), other.size());
    // ranks of adapters that are not resident pad nothing
    for (std::size_t at = 0; at < one.size(); ++at) EXPECT_NEAR(one[at], other[at], 1e-6);
  }
  const auto refused = refusal([&] { few.run({{"input_ids", ids_, {2, 3}}}, {"a", "b"}); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::bank_full);
}

TEST_F(Engines, NameAllThatIsWrongWithInputs) {
  auto engine = open_engine("encoder");
  const std::vector<float> floats(6, 1.0F);
  const std::vector<std::int64_t> mask{1, 1, 0, 0, 0, 0};
  const auto refused = refusal([&] {
    engine.run({{"input_ids", floats, {2, 3}}, {"strange", ids_, {6}}, {"attention_mask", ids_, {2, 3}}});
  });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::request);
  std::vector<std::string> subjects;
  for (const auto& problem : refused->problems()) subjects.push_back(problem.subject);
  std::sort(subjects.begin(), subjects.end());
  EXPECT_EQ(subjects, (std::vector<std::string>{"attention_mask", "input_ids", "strange"}));
  const auto empty = refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}, {"attention_mask", mask, {2, 3}}}); });
  ASSERT_TRUE(empty);
  EXPECT_EQ(empty->problems().front().got, "only zeros in row 1");
  const std::vector<std::int64_t> high{5, 97};
  const auto outside = refusal([&] { engine.run({{"input_ids", high, {1, 2}}}); });
  ASSERT_TRUE(outside);
  EXPECT_EQ(outside->problems().front().got, "values from 5 to 97");
  EXPECT_EQ(refusal([&] { engine.run({}); })->problems().front().got, "nothing");
  EXPECT_TRUE(refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}}, {"a", "b", "c"}); })->has("bad-input"));
}

TEST_F(Engines, WithoutSlotsTakeNoAdapters) {
  auto engine = open_engine("plain");
  const auto refused = refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}}, {"a"}); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::request);
  EXPECT_TRUE(engine.adapters().empty());
}

std::optional<Error> refused_opening(const std::string& bundle, const Options& options) {
  return refusal([&] { Engine::open(bundle_path(bundle), options); });
}

TEST_F(Engines, AreNotOpenedOnWhatIsNotThere) {
  auto options = test_options();
  for (const std::string provider : {"cuda", "ort-tensorrt", "ort-tensorrt-rtx"}) {
    options.provider = provider;
    const auto refused = refused_opening("encoder", options);
    if (!refused) GTEST_SKIP() << "this machine has " << provider;
    EXPECT_EQ(refused->kind(), Kind::provider) << refused->what();
    EXPECT_TRUE(refused->has("provider-unavailable"));
  }
  for (const std::string provider : {"tensorrt", "rocm", "CPU", ""}) {
    options.provider = provider;
    EXPECT_EQ(refused_opening("encoder", options)->kind(), Kind::provider) << provider;
  }
}

TEST_F(Engines, AreNotOpenedWithWhatDoesNotFit) {
  auto options = test_options();
  options.provider_options = {{"device_id", "0"}};
  EXPECT_EQ(refused_opening("encoder", options)->problems().front().subject, "device_id");
  options = test_options();
  options.rows = -1;
  options.threads = -2;
  EXPECT_EQ(refused_opening("encoder", options)->problems().size(), 2U);
  EXPECT_EQ(refused_opening("absent", test_options())->kind(), Kind::bundle);
  EXPECT_EQ(refused_opening("brain", test_options())->kind(), Kind::provider);  // bfloat16
  options = test_options();
  options.ort_library = "/nowhere/libonnxruntime.so";
  const auto library = refused_opening("encoder", options);
  ASSERT_TRUE(library);
  EXPECT_EQ(library->kind(), Kind::dependency);
  EXPECT_EQ(library->problems().front().code, "package-missing");
  EXPECT_EQ(library->problems().front().subject, "/nowhere/libonnxruntime.so");
  options.ort_library = "libm.so.6";
  EXPECT_EQ(refused_opening("encoder", options)->kind(), Kind::dependency);
  options = test_options();
  options.kernels = "/nowhere/libadexport_kernels.so";
  EXPECT_EQ(refused_opening("encoder", options)->kind(), Kind::dependency);
  options.kernels = bundle_path("encoder") + "/manifest.json";  // no library
  EXPECT_EQ(refused_opening("encoder", options)->kind(), Kind::dependency);
}

TEST_F(Engines, RefuseAGraphThatIsNotItsManifests) {
  const auto copy = std::filesystem::temp_directory_path() / ("adexport-" + std::to_string(::getpid()) + ".bundle");
  std::filesystem::copy(bundle_path("encoder"), copy, std::filesystem::copy_options::recursive);
  std::ifstream read(copy / "manifest.json");
  std::string text((std::istreambuf_iterator<char>(read)), {});
  const std::string name = "\"encoder.layer.0.attention.self.query.lora_A\"";
  const auto place = text.find(name);
  ASSERT_NE(place, std::string::npos);
  text.replace(place, name.size(), "\"strange.lora_A\"");
  std::ofstream(copy / "manifest.json") << text;
  const auto refused = refusal([&] { Engine::open(copy.string(), test_options()); });
  std::filesystem::resize_file(copy / "model.onnx", std::filesystem::file_size(copy / "model.onnx") - 1);
  const auto damaged = refusal([&] { Engine::open(copy.string(), test_options()); });
  std::filesystem::remove_all(copy);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::bundle);
  EXPECT_EQ(refused->problems().size(), 2U) << refused->what();
  ASSERT_TRUE(damaged);
  EXPECT_EQ(damaged->kind(), Kind::bundle);
}

// C strings would end there, and "a" be taken for what was asked for.
TEST_F(Engines, TextsAreNotCutAtAZeroByte) {
  using namespace std::string_literals;
  auto engine = open_engine("encoder");
  const auto subject_of = [](const std::optional<Error>& error) {
    return error ? error->problems().front().subject : "nothing";
  };
  EXPECT_EQ(refusal([&] { engine.bind("a\0b"s); })->kind(), Kind::adapter);
  EXPECT_EQ(subject_of(refusal([&] { engine.bind("x", bundle_path("encoder") + "/adapters/a.safetensors\0"s); })),
            "path");
  EXPECT_EQ(refusal([&] { engine.unbind("a\0b"s); })->kind(), Kind::unknown_adapter);
  const auto refused = refusal([&] { engine.run({{"input_ids", ids_, {2, 3}}}, {"a\0b"s, "b\0"s}); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->kind(), Kind::unknown_adapter);
  EXPECT_EQ(refused->problems().size(), 2U);
  EXPECT_EQ(subject_of(refusal([&] { engine.run({{"input_ids\0"s, ids_, {2, 3}}}); })), "the name of inputs[0]");
  EXPECT_EQ(subject_of(refusal([&] { engine.generate({{{1}, "a\0"s}}); })), "prompts[0].adapter");
  EXPECT_EQ(subject_of(refusal([&] { Engine::open(bundle_path("encoder") + "\0x"s, test_options()); })), "bundle");
  auto options = test_options();
  options.provider = "cpu\0cuda"s;
  options.provider_options = {{"key", "\0"s}};
  EXPECT_EQ(refused_opening("encoder", options)->problems().size(), 2U);
  EXPECT_EQ(engine.adapters(), (std::vector<std::string>{"a", "b", "c"}));
}

}  // namespace
}  // namespace adexport::testing
