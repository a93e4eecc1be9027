#include "errors.hpp"

#include <gtest/gtest.h>

namespace adexport::core {
namespace {

TEST(Errors, SayAllThatIsKnownOfACulprit) {
  const Error error(Kind::adapter, "x is refused",
                    Problem{code::wrong_shape, "a.lora_A", "3 features", "4", "another base", "bind it again"});
  EXPECT_EQ(error.kind(), Kind::adapter);
  EXPECT_EQ(error.headline(), "x is refused");
  EXPECT_STREQ(error.what(),
               "x is refused: a.lora_A: got 3 features, expected 4 [wrong-shape]. Likely cause: another base. "
               "To mend: bind it again.");
}

TEST(Errors, LeaveOutWhatIsNotKnown) {
  EXPECT_STREQ(Error(Kind::bundle, "x", Problem{code::absent, "y"}).what(), "x: y [absent].");
  EXPECT_STREQ(Error(Kind::bundle, "x", Problem{code::absent, "y", "no file"}).what(),
               "x: y: got no file [absent].");
  EXPECT_STREQ(Error(Kind::bundle, "x", Problem{code::absent, "y", {}, "one"}).what(),
               "x: y: expected one [absent].");
}

TEST(Errors, CulpritsThatDifferInTheirSubjectShareASentence) {
  const Error error(Kind::adapter, "x",
                    {{code::empty_tensor, "a", "none"}, {code::absent, "b"}, {code::empty_tensor, "c", "none"}});
  EXPECT_STREQ(error.what(), "x: 2 × a, c: got none [empty-tensor]. b [absent].");
  EXPECT_EQ(error.problems().size(), 3U);
}

TEST(Errors, NothingIsCutAtAZeroByte) {
  const Error error(Kind::bundle, "x", {{code::absent, std::string("a\0b", 3)}, {code::absent, "c"}});
  EXPECT_STREQ(error.what(), "x: 2 × a\\x00b, c [absent].");
  EXPECT_EQ(error.problems().at(0).subject, "a\\x00b");
}

}  // namespace
}  // namespace adexport::core
