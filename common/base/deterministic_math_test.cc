// Goal: our functions are accurate, also at the edges. Method: compare with the C library's long
// double functions over a wide range, in units in the last place.
#include "common/base/deterministic_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace baton {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// |got - want| in units of the last place of a double near `want`.
double UlpError(double got, long double want) {
  const double rounded = static_cast<double>(want);
  const double ulp = std::nextafter(std::abs(rounded), kInfinity) - std::abs(rounded);
  return static_cast<double>(std::abs(got - want)) / ulp;
}

TEST(StableExpTest, WithinTwoUlp) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> range(-700.0, 700.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? range(random) : range(random) / 1000.0;
    ASSERT_LT(UlpError(StableExp(x), std::exp(static_cast<long double>(x))), 2.0) << x;
  }
}

TEST(StableExpTest, Edges) {
  EXPECT_EQ(StableExp(0.0), 1.0);
  EXPECT_EQ(StableExp(-kInfinity), 0.0);
  EXPECT_EQ(StableExp(kInfinity), kInfinity);
  EXPECT_EQ(StableExp(710.0), kInfinity);
  EXPECT_EQ(StableExp(-1000.0), 0.0);
  EXPECT_TRUE(std::isnan(StableExp(std::nan(""))));
  EXPECT_TRUE(std::isfinite(StableExp(709.78)));
  EXPECT_GT(StableExp(-740.0), 0.0);  // Subnormal.
}

TEST(StableLogTest, WithinTwoUlp) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> exponent(-300.0, 300.0);
  for (int i = 0; i < 100000; ++i) {
    const double x =
        i % 2 == 0 ? std::pow(10.0, exponent(random)) : 1.0 + exponent(random) / 1000.0;
    ASSERT_LT(UlpError(StableLog(x), std::log(static_cast<long double>(x))), 2.0) << x;
  }
}

TEST(StableLogTest, Edges) {
  EXPECT_EQ(StableLog(1.0), 0.0);
  EXPECT_EQ(StableLog(0.0), -kInfinity);
  EXPECT_EQ(StableLog(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(StableLog(-1.0)));
  EXPECT_NEAR(StableLog(5e-324), -744.4400719213812, 1e-10);
}

TEST(StableSinCosTest, WithinAFewRoundings) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> range(-1048576.0, 1048576.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? range(random) : range(random) / 1e5;
    const SinCos result = StableSinCos(x);
    ASSERT_NEAR(result.sin, static_cast<double>(std::sin(static_cast<long double>(x))), 4e-16) << x;
    ASSERT_NEAR(result.cos, static_cast<double>(std::cos(static_cast<long double>(x))), 4e-16) << x;
  }
}

TEST(StableSinCosTest, Zero) {
  EXPECT_EQ(StableSinCos(0.0).sin, 0.0);
  EXPECT_EQ(StableSinCos(0.0).cos, 1.0);
}

TEST(StableExpFloatTest, WithinTwoUlp) {
  for (float x = -87.0f; x < 88.0f; x += 0.0037f) {
    const double want = std::exp(static_cast<double>(x));
    ASSERT_NEAR(StableExp(x), want, want * 2.0 * 0x1p-23) << x;
  }
}

TEST(StableExpFloatTest, Edges) {
  EXPECT_EQ(StableExp(0.0f), 1.0f);
  EXPECT_EQ(StableExp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(StableExp(-100.0f), 0.0f);
  EXPECT_EQ(StableExp(100.0f), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(StableExp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(StableTanhFloatTest, WithinThreeUlp) {
  for (float x = -20.0f; x < 20.0f; x += 0.00037f) {
    const double want = std::tanh(static_cast<double>(x));
    ASSERT_NEAR(StableTanh(x), want, std::abs(want) * 3.0 * 0x1p-23) << x;
  }
}

TEST(StableTanhFloatTest, Edges) {
  EXPECT_EQ(StableTanh(0.0f), 0.0f);
  EXPECT_TRUE(std::signbit(StableTanh(-0.0f)));
  EXPECT_EQ(StableTanh(1e-30f), 1e-30f);
  EXPECT_EQ(StableTanh(std::numeric_limits<float>::infinity()), 1.0f);
  EXPECT_EQ(StableTanh(-std::numeric_limits<float>::infinity()), -1.0f);
  EXPECT_TRUE(std::isnan(StableTanh(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace baton
