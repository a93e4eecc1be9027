// What does not fit is refused by name, before anything is written.
#include <gtest/gtest.h>

#include <cstdlib>

#include "numbers.hpp"
#include "pieces.hpp"

namespace adexport::kernels::testing {
namespace {

class Refusals : public ::testing::Test {
 protected:
  Refusals() {
    call_.where = "LoraAdd";
    call_.pair = Pair::float_float;
    call_.y = view(memory_, {2, 3, 8});
    call_.x = view(memory_, {2, 3, 4});
    call_.down = view(memory_, {5, 4, 2});
    call_.up = view(memory_, {5, 2, 8});
    call_.ids = view(ids_, {2});
  }

  std::string refusal() {
    try {
      (void)call_.checked();
    } catch (const Misfit& misfit) {
      return misfit.what();
    }
    return "";
  }

  std::vector<float> memory_ = std::vector<float>(1000);
  std::vector<std::int64_t> ids_{1, 4};
  LowRankCall call_{};
};

TEST_F(Refusals, NothingIfAllFits) {
  EXPECT_EQ(refusal(), "");
}

TEST_F(Refusals, EveryBadIdIsNamed) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    for (auto& id : ids_) id = static_cast<std::int64_t>(random()) >> (random() % 62);
    const bool fits = ids_[0] >= 0 && ids_[0] < 5 && ids_[1] >= 0 && ids_[1] < 5;
    const std::string message = refusal();
    EXPECT_EQ(message.empty(), fits);
    for (const auto id : ids_) {
      const bool named = message.find("adapter id " + std::to_string(id) + " ") != std::string::npos;
      EXPECT_EQ(named, id < 0 || id >= 5) << message;
    }
    if (!fits) {
      EXPECT_NE(message.find("5 rows"), std::string::npos);
      EXPECT_EQ(message.rfind("LoraAdd", 0), 0U);
    }
  }
}

TEST_F(Refusals, CountsOfIds) {
  call_.ids = view(ids_, {1});
  EXPECT_EQ(refusal(), "");
  const std::vector<std::int64_t> three{1, 2, 3};
  call_.ids = view(three, {3});
  EXPECT_NE(refusal().find("ids has 3 values"), std::string::npos);
  call_.ids = view(three, {1, 2});
  EXPECT_NE(refusal().find("ids is [1, 2], expected 1 axes"), std::string::npos);
}

TEST_F(Refusals, RowsOfTheBatch) {
  call_.ids = View{};
  EXPECT_NE(refusal().find("5 rows for a batch of 2"), std::string::npos);
  call_.down = view(memory_, {2, 4, 2});
  call_.up = view(memory_, {2, 2, 8});
  EXPECT_EQ(refusal(), "");
}

TEST_F(Refusals, EverySizeThatDiffersIsNamed) {
  call_.x = view(memory_, {2, 2, 4});
  call_.up = view(memory_, {5, 3, 8});
  call_.bias = view(memory_, {7});
  const std::string message = refusal();
  EXPECT_NE(message.find("x is [2, 2, 4], expected [batch = 2, tokens = 3, in = 4]"), std::string::npos) << message;
  EXPECT_NE(message.find("B is [5, 3, 8], expected [rows = 5, rank = 2, out = 8]"), std::string::npos) << message;
  EXPECT_NE(message.find("bias is [7], expected [out = 8]"), std::string::npos) << message;
}

TEST_F(Refusals, Axes) {
  call_.y = view(memory_, {6, 8});
  EXPECT_NE(refusal().find("y is [6, 8], expected 3 axes"), std::string::npos);
  call_.y.axes = 5;
  EXPECT_NE(refusal().find("expected 3 axes"), std::string::npos);
}

TEST_F(Refusals, BottleneckShapes) {
  call_.down_bias = view(memory_, {5, 3});
  call_.up_bias = view(memory_, {4, 8});
  call_.code = view(ids_, {2});
  const std::string message = refusal();
  for (const char* part : {"down_bias is [5, 3], expected [rows = 5, width = 2]",
                           "up_bias is [4, 8], expected [rows = 5, out = 8]", "code is [2], expected [rows = 5]"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(ElementwiseRefusals, Shapes) {
  const std::vector<float> memory(100);
  ElementwiseCall call{};
  call.where = "RowScale";
  call.scales = true;
  call.x = view(memory, {2, 3, 4});
  call.vector = view(memory, {2, 5});
  try {
    (void)call.checked();
    FAIL() << "not refused";
  } catch (const Misfit& misfit) {
    EXPECT_STREQ(misfit.what(), "RowScale: scale is [2, 5], expected [rows = 2, features = 4]");
  }
}

TEST(PiecesTest, CoverEveryTokenOnce) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    const std::size_t batch = random() % 70, tokens = random() % 200;
    std::vector<std::int64_t> ids(batch);
    for (auto& id : ids) id = static_cast<std::int64_t>(random() % 3);
    View none = view(ids, {batch});
    const Rows rows("test", none, batch, 3);
    const Pieces pieces(rows, tokens, 48);
    std::size_t next = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const Piece& piece = pieces[i];
      ASSERT_EQ(piece.token, next);
      ASSERT_GT(piece.tokens, 0U);
      ASSERT_LE(piece.tokens, 48U);
      next += piece.tokens;
      for (std::size_t token = piece.token; token < next; ++token) {
        ASSERT_EQ(static_cast<std::int64_t>(piece.row), ids[token / tokens]);
      }
      ASSERT_EQ(piece.skipped, piece.row == 0);
    }
    ASSERT_EQ(next, batch * tokens);
  }
}

TEST(Isa, TheEnvironmentChooses) {
  std::string refusal;
  for (const Table* table : runnable_tables()) {
    setenv("ADEXPORT_KERNELS_ISA", table->name, 1);
    EXPECT_EQ(chosen_table(refusal), table);
  }
  EXPECT_EQ(refusal, "");
  setenv("ADEXPORT_KERNELS_ISA", "mmx", 1);
  EXPECT_EQ(chosen_table(refusal), nullptr);
  EXPECT_NE(refusal.find("'mmx', but this CPU can run"), std::string::npos);
  unsetenv("ADEXPORT_KERNELS_ISA");
  EXPECT_EQ(chosen_table(refusal), runnable_tables().front());
}

}  // namespace
}  // namespace adexport::kernels::testing
