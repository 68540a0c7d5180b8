#include "common/model/rope_angles.h"

#include <algorithm>
#include <cmath>

#include "common/base/check.h"
#include "common/base/deterministic_math.h"

namespace baton {
namespace {

constexpr double kTwoPi = 6.28318530717958647692;

// Llama 3.1: long waves are stretched by the factor, short ones kept, those between interpolated.
double Llama3Frequency(const RopeConfig& rope, double frequency) {
  const double context = rope.original_context_tokens;
  const double wavelength = kTwoPi / frequency;
  if (wavelength < context / rope.high_freq_factor) return frequency;
  if (wavelength > context / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (context / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

// The dimension whose wave turns `rotations` times within the original context.
double YarnDimension(const RopeConfig& rope, double rotations) {
  return rope.dim * StableLog(rope.original_context_tokens / (rotations * kTwoPi)) /
         (2.0 * StableLog(rope.theta));
}

// YaRN (Peng et al., 2023): as Llama3Frequency in spirit, with a ramp over dimensions.
double YarnFrequency(const RopeConfig& rope, double frequency, uint32_t pair) {
  double low = YarnDimension(rope, rope.beta_fast);
  double high = YarnDimension(rope, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.dim) - 1.0);
  if (low == high) high += 0.001;  // As the reference does, against a division by zero.
  const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return frequency / rope.factor * ramp + frequency * (1.0 - ramp);
}

double ScaledFrequency(const RopeConfig& rope, double frequency, uint32_t pair) {
  switch (rope.scaling) {
    case RopeScaling::kNone:
      return frequency;
    case RopeScaling::kLinear:
      return frequency / rope.factor;
    case RopeScaling::kLlama3:
      return Llama3Frequency(rope, frequency);
    case RopeScaling::kYarn:
      return YarnFrequency(rope, frequency, pair);
    case RopeScaling::kLongRope:
      return frequency / rope.divisors[pair];
  }
  return frequency;
}

}  // namespace

RopeAngles::RopeAngles(const RopeConfig& config)
    : attention_factor_(config.attention_factor), frequencies_(config.dim / 2) {
  BATON_CHECK(config.dim % 2 == 0);
  const double log_theta = StableLog(config.theta);
  for (uint32_t pair = 0; pair < config.dim / 2; ++pair) {
    const double frequency = StableExp(-log_theta * (2.0 * pair / config.dim));
    frequencies_[pair] = static_cast<float>(ScaledFrequency(config, frequency, pair));
  }
}

}  // namespace baton
