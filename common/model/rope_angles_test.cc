#include "common/model/rope_angles.h"

#include <gtest/gtest.h>

#include <cmath>

namespace baton {
namespace {

// The values of the extensions are compared with Hugging Face's in golden_test.cc; here are the
// shapes of their curves, by hand.

TEST(RopeAnglesTest, PlainFrequenciesArePowersOfTheta) {
  const RopeAngles angles({.dim = 8, .theta = 10000.0f});

  ASSERT_EQ(angles.frequencies().size(), 4u);
  EXPECT_FLOAT_EQ(angles.frequencies()[0], 1.0f);
  EXPECT_FLOAT_EQ(angles.frequencies()[1], 0.1f);
  EXPECT_FLOAT_EQ(angles.frequencies()[2], 0.01f);
  EXPECT_FLOAT_EQ(angles.frequencies()[3], 0.001f);
}

TEST(RopeAnglesTest, LinearDividesEveryFrequency) {
  const RopeAngles angles({.dim = 8, .scaling = RopeScaling::kLinear, .factor = 4.0f});

  EXPECT_FLOAT_EQ(angles.frequencies()[0], 0.25f);
  EXPECT_FLOAT_EQ(angles.frequencies()[3], 0.00025f);
}

TEST(RopeAnglesTest, Llama3KeepsShortWavesAndStretchesLongOnes) {
  // Wavelengths are 6.3, 63, 628 and 6283; the bounds lie at 100 and 1000.
  const RopeAngles angles({.dim = 8,
                           .scaling = RopeScaling::kLlama3,
                           .factor = 8.0f,
                           .low_freq_factor = 1.0f,
                           .high_freq_factor = 10.0f,
                           .original_context_tokens = 1000});

  EXPECT_FLOAT_EQ(angles.frequencies()[0], 1.0f);
  EXPECT_FLOAT_EQ(angles.frequencies()[1], 0.1f);
  EXPECT_GT(angles.frequencies()[2], 0.01f / 8.0f);
  EXPECT_LT(angles.frequencies()[2], 0.01f);
  EXPECT_FLOAT_EQ(angles.frequencies()[3], 0.001f / 8.0f);
}

TEST(RopeAnglesTest, YarnKeepsShortWavesStretchesLongOnesAndScales) {
  const RopeAngles angles({.dim = 32,
                           .scaling = RopeScaling::kYarn,
                           .factor = 4.0f,
                           .original_context_tokens = 64,
                           .attention_factor = 1.5f});
  EXPECT_FLOAT_EQ(angles.frequencies().front(), 1.0f);
  EXPECT_FLOAT_EQ(angles.frequencies().back(), std::pow(10000.0f, -30.0f / 32.0f) / 4.0f);
  EXPECT_EQ(angles.attention_factor(), 1.5f);
}

TEST(RopeAnglesTest, LongRopeDividesEachFrequencyByItsOwn) {
  const RopeAngles angles({.dim = 8,
                           .scaling = RopeScaling::kLongRope,
                           .attention_factor = 1.25f,
                           .divisors = {1.0f, 2.0f, 4.0f, 8.0f}});
  EXPECT_FLOAT_EQ(angles.frequencies()[1], 0.05f);
  EXPECT_FLOAT_EQ(angles.frequencies()[3], 0.000125f);
  EXPECT_EQ(angles.attention_factor(), 1.25f);
}

}  // namespace
}  // namespace baton
