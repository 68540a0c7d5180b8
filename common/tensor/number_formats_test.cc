#include "common/tensor/number_formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace baton {
namespace {

// The nearest of all 65536 numbers of a format, ties to the even one: slow and obvious.
template <typename ToF32>
float NearestFinite(float value, const ToF32& to_f32) {
  uint32_t best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float candidate = to_f32(static_cast<uint16_t>(bits));
    if (!std::isfinite(candidate) || std::signbit(candidate) != std::signbit(value)) continue;
    const double distance = std::abs(static_cast<double>(candidate) - value);
    if (distance < best_distance || (distance == best_distance && bits % 2 == 0)) {
      best = bits;
      best_distance = distance;
    }
  }
  return to_f32(static_cast<uint16_t>(best));
}

TEST(NumberFormatsTest, EveryNumberSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    if (!std::isnan(Bf16ToF32(half))) {
      ASSERT_EQ(F32ToBf16(Bf16ToF32(half)), half);
    }
    if (!std::isnan(F16ToF32(half))) {
      ASSERT_EQ(F32ToF16(F16ToF32(half)), half);
    }
  }
}

// All 256, and what lies between them.
TEST(NumberFormatsTest, E4m3RoundsToTheNearestOfItsNumbers) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const float number = E4m3ToF32(static_cast<uint8_t>(bits));
    if ((bits & 0x7fu) == 0x7fu) {
      EXPECT_TRUE(std::isnan(number));
      EXPECT_EQ(F32ToE4m3(number) & 0x7fu, 0x7fu);
      continue;
    }
    ASSERT_EQ(F32ToE4m3(number), bits);
    if ((bits & 0x7fu) == 0x7eu) continue;
    const float next = E4m3ToF32(static_cast<uint8_t>(bits + 1));
    const float middle = (number + next) / 2;
    ASSERT_LT(std::abs(number), std::abs(next));
    ASSERT_EQ(F32ToE4m3(middle), bits + bits % 2) << "ties go to the even one";
    ASSERT_EQ(F32ToE4m3(std::nextafter(middle, number)), bits);
    ASSERT_EQ(F32ToE4m3(std::nextafter(middle, next)), bits + 1);
  }
  EXPECT_EQ(E4m3ToF32(0x38), 1.0f);
  EXPECT_EQ(E4m3ToF32(0x01), 0x1p-9f);
  EXPECT_EQ(E4m3ToF32(0xfe), -448.0f);
  EXPECT_EQ(F32ToE4m3(1e9f), 0x7e);
  EXPECT_EQ(F32ToE4m3(-std::numeric_limits<float>::infinity()), 0xfe);
}

TEST(NumberFormatsTest, KnownNumbers) {
  EXPECT_EQ(F16ToF32(0x3c00), 1.0f);
  EXPECT_EQ(F16ToF32(0xc000), -2.0f);
  EXPECT_EQ(F16ToF32(0x7bff), 65504.0f);
  EXPECT_EQ(F16ToF32(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToF32(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(Bf16ToF32(0x3f80), 1.0f);
  EXPECT_EQ(F32ToF16(65519.0f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
  EXPECT_EQ(F32ToF16(0x1p-25f), 0x0000);  // A tie with zero, which is even.
  EXPECT_EQ(F32ToF16(0x1.8p-24f), 0x0002);
}

TEST(NumberFormatsTest, NotANumberStaysOne) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(nan))));
  EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(nan))));
  EXPECT_TRUE(std::isnan(F16ToF32(0x7e01)));
  // The payload lies in the half that is cut off.
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(NumberFormatsTest, RoundsToNearestEven) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-26.0f, 14.0f);
  for (int i = 0; i < 300; ++i) {
    const float value = std::exp2(exponent(random)) * (random() % 2 == 0 ? 1.0f : -1.0f);
    ASSERT_EQ(F16ToF32(F32ToF16(value)), NearestFinite(value, F16ToF32)) << value;
    ASSERT_EQ(Bf16ToF32(F32ToBf16(value)), NearestFinite(value, Bf16ToF32)) << value;
  }
}

}  // namespace
}  // namespace baton
