// Sessions of ONNX Runtime: whether its settings do what they are for.
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "bundle.hpp"
#include "cases.hpp"
#include "ort/saturation.hpp"
#include "ort/session.hpp"

namespace adexport::testing {
namespace {

class Sessions : public WithBundles {
 protected:
  void SetUp() override {
    WithBundles::SetUp();
    if (IsSkipped()) return;
    ort_ = &core::OrtLibrary::load(std::nullopt);
    bundle_ = core::Bundle::open(bundle_path("encoder"));
    written_ = std::filesystem::temp_directory_path() / ("adexport-" + std::to_string(::getpid()) + ".onnx");
  }
  void TearDown() override { std::filesystem::remove(written_); }

  // Whether the graph that was written has an operator.
  [[nodiscard]] bool has(const std::string& type) const {
    std::ifstream file(written_, std::ios::binary);
    const std::string content((std::istreambuf_iterator<char>(file)), {});
    EXPECT_NE(content.find("LayerNormalization"), std::string::npos);
    return content.find(type) != std::string::npos;
  }

  const core::OrtLibrary* ort_ = nullptr;
  core::Bundle bundle_;
  std::filesystem::path written_;
};

TEST_F(Sessions, LeaveOutFusionsThatAreSlow) {
  const auto& ort = *ort_;
  OrtSessionOptions* created = nullptr;
  ort.check(ort->CreateSessionOptions(&created));
  const core::OrtOwned<OrtSessionOptions> options(created, ort->ReleaseSessionOptions);
  ort.check(ort->SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_ERROR));
  ort.check(ort->SetOptimizedModelFilePath(created, written_.c_str()));
  OrtSession* session = nullptr;
  ort.check(ort->CreateSession(ort.env(), bundle_.model_path().c_str(), created, &session));
  const core::OrtOwned<OrtSession> plain(session, ort->ReleaseSession);
  ASSERT_TRUE(has("SkipLayerNormalization")) << "ONNX Runtime fuses nothing here, so this shows nothing";

  core::SessionSettings settings;
  settings.provider = core::provider_named("cpu", {});
  settings.optimized = written_.string();
  core::open_session(ort, bundle_.model_path(), bundle_.manifest, settings);
  EXPECT_FALSE(has("SkipLayerNormalization"));
}

TEST_F(Sessions, AreOfOneLibraryForEachPath) {
  EXPECT_EQ(&core::OrtLibrary::load(std::nullopt), ort_);
  EXPECT_EQ(&core::OrtLibrary::load(ort_->path()), ort_);
  EXPECT_EQ(ort_->later(1000), nullptr);
}

TEST_F(Sessions, AskTheCpuWhetherItSaturates) {
  EXPECT_EQ(core::saturates(*ort_), core::saturates(*ort_));  // it takes the graph
}

}  // namespace
}  // namespace adexport::testing
