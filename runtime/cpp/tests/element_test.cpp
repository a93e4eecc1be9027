#include "element.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support.hpp"

namespace adexport::core {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

double half_value(unsigned bits) {
  const int exponent = static_cast<int>((bits >> 10) & 31U);
  const double fraction = bits & 1023U;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

float brain_value(unsigned bits) {
  const std::uint32_t whole = bits << 16;
  float value = 0.0F;
  std::memcpy(&value, &whole, sizeof value);
  return value;
}

TEST(Element, NamesAreThoseOfTheManifest) {
  for (const char* name : {"fp32", "fp16", "bf16", "int64", "int32"}) {
    ASSERT_TRUE(element_named(name).has_value()) << name;
    EXPECT_STREQ(name_of(*element_named(name)), name);
  }
  EXPECT_FALSE(element_named("fp8").has_value());
  EXPECT_FALSE(element_named("").has_value());
  EXPECT_EQ(size_of(Element::fp32), 4U);
  EXPECT_EQ(size_of(Element::fp16), 2U);
  EXPECT_EQ(size_of(Element::bf16), 2U);
  EXPECT_EQ(size_of(Element::int64), 8U);
  EXPECT_EQ(size_of(Element::int32), 4U);
}

TEST(Element, TheLargestValueIsTheLastThatIsFinite) {
  EXPECT_EQ(largest(Element::fp32), static_cast<double>(std::numeric_limits<float>::max()));
  EXPECT_EQ(largest(Element::fp16), half_value(0x7BFF));
  EXPECT_EQ(largest(Element::bf16), static_cast<double>(brain_value(0x7F7F)));
}

TEST(Element, EveryHalfIsKeptAndTiesGoToEven) {
  for (unsigned bits = 0; bits < 0x7BFF; ++bits) {
    const double here = half_value(bits), next = half_value(bits + 1), middle = (here + next) / 2;
    const auto rounded = [](double value) { return static_cast<unsigned>(to_fp16(static_cast<float>(value))); };
    ASSERT_EQ(rounded(here), bits);
    ASSERT_EQ(rounded(-here), bits | 0x8000U);
    ASSERT_EQ(rounded(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(static_cast<unsigned>(to_fp16(std::nextafter(static_cast<float>(middle), infinity))), bits + 1);
    ASSERT_EQ(static_cast<unsigned>(to_fp16(std::nextafter(static_cast<float>(middle), 0.0F))), bits);
  }
}

TEST(Element, HalvesOverflowFromTheMiddleOn) {
  EXPECT_EQ(to_fp16(65504.0F), 0x7BFF);
  EXPECT_EQ(to_fp16(std::nextafter(65520.0F, 0.0F)), 0x7BFF);
  EXPECT_EQ(to_fp16(65520.0F), 0x7C00);
  EXPECT_EQ(to_fp16(-65536.0F), 0xFC00);
  EXPECT_EQ(to_fp16(infinity), 0x7C00);
  EXPECT_EQ(to_fp16(-infinity), 0xFC00);
}

TEST(Element, EveryBrainFloatIsKeptAndTiesGoToEven) {
  for (unsigned bits = 0; bits < 0x7F80; ++bits) {
    const float here = brain_value(bits);
    ASSERT_EQ(to_bf16(here), bits);
    ASSERT_EQ(to_bf16(-here), bits | 0x8000U);
    const std::uint32_t whole = (bits << 16) | 0x8000U;
    float middle = 0.0F;
    std::memcpy(&middle, &whole, sizeof middle);
    ASSERT_EQ(to_bf16(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(to_bf16(std::nextafter(middle, infinity)), bits + 1);
    ASSERT_EQ(to_bf16(std::nextafter(middle, 0.0F)), bits);
  }
}

TEST(Element, NotANumberStaysSo) {
  for (const std::uint32_t bits : {0x7FC00000U, 0x7F800001U, 0xFFC00000U, 0xFFFFFFFFU}) {
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof value);
    EXPECT_GT(to_fp16(value) & 0x7FFF, 0x7C00);
    EXPECT_GT(to_bf16(value) & 0x7FFF, 0x7F80);
    EXPECT_EQ(to_fp16(value) >> 15, bits >> 31);
    EXPECT_EQ(to_bf16(value) >> 15, bits >> 31);
  }
}

TEST(Element, ConvertsWholeArrays) {
  const std::vector<float> source = {1.0F, -2.5F, 70000.0F};
  std::vector<float> same(3);
  convert(source.data(), 3, Element::fp32, same.data());
  EXPECT_EQ(same, source);
  std::vector<std::uint16_t> narrow(3);
  convert(source.data(), 3, Element::fp16, narrow.data());
  EXPECT_EQ(narrow, (std::vector<std::uint16_t>{0x3C00, 0xC100, 0x7C00}));
  convert(source.data(), 3, Element::bf16, narrow.data());
  EXPECT_EQ(narrow, (std::vector<std::uint16_t>{0x3F80, 0xC020, 0x4789}));
  convert(nullptr, 0, Element::fp32, nullptr);
  const auto error = tests::error_of([&] { convert(source.data(), 3, Element::int64, same.data()); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->kind(), Kind::internal);
}

}  // namespace
}  // namespace adexport::core
