// exp, log, tanh, sin and cos whose bits depend on nothing but their argument.
//
// The C library chooses its implementation by CPU, so its last bits differ between machines. These
// use only IEEE additions, multiplications and divisions in a fixed order (never contracted: see
// "Equal bits" in DESIGN_NOTES.md). Accurate to about one unit in the last place. Pure functions.
#ifndef BATON_COMMON_BASE_DETERMINISTIC_MATH_H_
#define BATON_COMMON_BASE_DETERMINISTIC_MATH_H_

#include <bit>
#include <cstdint>
#include <limits>

namespace baton {

struct SinCos {
  double sin = 0.0;
  double cos = 1.0;
};

namespace deterministic_math_internal {

inline constexpr double kLn2High =
    6.93147180369123816490e-01;  // ln 2 in two parts: the first has 33
inline constexpr double kLn2Low =
    1.90821492927058770002e-10;  // bits, so that n * kLn2High is exact.
// Adding and subtracting 1.5 * 2^52 rounds to the nearest integer.
inline constexpr double kRound = 6755399441055744.0;

// 2^exponent for a normal result. REQUIRES: -1022 <= exponent <= 1023.
constexpr double PowerOfTwo(int64_t exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

}  // namespace deterministic_math_internal

// e^x in double precision: argument reduction by ln 2, Taylor series of degree 13.
constexpr double StableExp(double x) {
  using deterministic_math_internal::PowerOfTwo;
  if (x != x) return x;
  if (x > 709.782712893384) return std::numeric_limits<double>::infinity();
  if (x < -745.2) return 0.0;
  const double n = (x * 1.44269504088896338700 + deterministic_math_internal::kRound) -
                   deterministic_math_internal::kRound;
  const double r =
      (x - n * deterministic_math_internal::kLn2High) - n * deterministic_math_internal::kLn2Low;
  constexpr double kCoefficients[] = {// 1 / 13!, …, 1 / 2!, 1, 1
                                      1.0 / 6227020800.0,
                                      1.0 / 479001600.0,
                                      1.0 / 39916800.0,
                                      1.0 / 3628800.0,
                                      1.0 / 362880.0,
                                      1.0 / 40320.0,
                                      1.0 / 5040.0,
                                      1.0 / 720.0,
                                      1.0 / 120.0,
                                      1.0 / 24.0,
                                      1.0 / 6.0,
                                      0.5,
                                      1.0,
                                      1.0};
  double sum = 0.0;
  for (double coefficient : kCoefficients) sum = sum * r + coefficient;
  // Two factors: the result may be subnormal, or 2^1024 times a number below one.
  const int64_t exponent = static_cast<int64_t>(n);
  const int64_t half = exponent / 2;
  return sum * PowerOfTwo(half) * PowerOfTwo(exponent - half);
}

// Natural logarithm: log(2^e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)), m in [sqrt 1/2, sqrt 2).
constexpr double StableLog(double x) {
  if (x != x || x < 0.0) return std::numeric_limits<double>::quiet_NaN();
  if (x == 0.0) return -std::numeric_limits<double>::infinity();
  if (x > std::numeric_limits<double>::max()) return x;
  int64_t exponent = 0;
  if (x < std::numeric_limits<double>::min()) {  // Subnormal.
    x *= 18014398509481984.0;                    // 2^54
    exponent = -54;
  }
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  exponent += static_cast<int64_t>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double z = s * s;
  double sum = 0.0;
  for (int k = 25; k >= 3; k -= 2) sum = (sum + 1.0 / k) * z;
  const double e = static_cast<double>(exponent);
  return e * deterministic_math_internal::kLn2High +
         (e * deterministic_math_internal::kLn2Low + (2.0 * s * sum + 2.0 * s));
}

// Sine and cosine. Argument reduction by pi / 2 in three parts (Cody and Waite, 1980), then Taylor
// series on [-pi/4, pi/4]. REQUIRES: |x| <= 2^20, the longest context times the highest frequency.
constexpr SinCos StableSinCos(double x) {
  const double n = (x * 0.63661977236758134308 + deterministic_math_internal::kRound) -
                   deterministic_math_internal::kRound;
  double r =
      x - n * 1.57079632673412561417e+00;  // 33 bits of pi / 2, then the next 33, then the rest.
  r = r - n * 6.07710050630396597660e-11;
  r = r - n * 2.02226624879595063154e-21;
  const double z = r * r;
  double sine = 0.0;
  for (int k = 18; k >= 2; k -= 2) sine = (sine + 1.0) * (-z / (k * (k + 1)));
  sine = r + r * sine;
  double cosine = 0.0;
  for (int k = 17; k >= 1; k -= 2) cosine = (cosine + 1.0) * (-z / (k * (k + 1)));
  cosine = 1.0 + cosine;
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      return {.sin = sine, .cos = cosine};
    case 1:
      return {.sin = cosine, .cos = -sine};
    case 2:
      return {.sin = -sine, .cos = -cosine};
  }
  return {.sin = -cosine, .cos = sine};
}

// e^x in single precision, without branches, so that a loop of it becomes vector code. Zero below
// -87.33 (no subnormals), infinity above 88.37. Cephes' expf: reduction by ln 2, degree 5.
// common/kernels/cpu/simd.inc is its vector twin and has the same bits.
constexpr float StableExp(float x) {
  constexpr float kLowest = -87.33f;
  constexpr float kHighest = 88.37f;
  constexpr float kRoundFloat = 12582912.0f;  // 1.5 * 2^23
  float bounded = x < kLowest ? kLowest : x;
  bounded = bounded > kHighest ? kHighest : bounded;
  const float shifted = bounded * 1.44269504088896341f + kRoundFloat;
  const float n = shifted - kRoundFloat;
  float r = bounded - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * r + 1.3981999507e-3f;
  sum = sum * r + 8.3334519073e-3f;
  sum = sum * r + 4.1665795894e-2f;
  sum = sum * r + 1.6666665459e-1f;
  sum = sum * r + 5.0000001201e-1f;
  sum = sum * (r * r) + r + 1.0f;
  // The low bits of `shifted` are n: into the exponent with them.
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
  float result = sum * scale;
  result = x < kLowest ? 0.0f : result;
  return x > kHighest ? std::numeric_limits<float>::infinity() : result;
}

// Hyperbolic tangent in single precision, without branches: near zero Cephes' tanhf, a polynomial
// of degree 11; else 1 - 2 / (e^2x + 1). Its vector twin is there, too.
constexpr float StableTanh(float x) {
  const uint32_t sign = std::bit_cast<uint32_t>(x) & 0x80000000u;
  const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(x) ^ sign);
  const float large = 1.0f - 2.0f / (StableExp(magnitude + magnitude) + 1.0f);
  const float z = magnitude * magnitude;
  float sum = -5.70498872745e-3f;
  sum = sum * z + 2.06390887954e-2f;
  sum = sum * z - 5.37397155531e-2f;
  sum = sum * z + 1.33314422036e-1f;
  sum = sum * z - 3.33332819422e-1f;
  const float small = sum * z * magnitude + magnitude;
  const float result = magnitude < 0.625f ? small : large;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(result) | sign);
}

}  // namespace baton

#endif  // BATON_COMMON_BASE_DETERMINISTIC_MATH_H_
