// Conversions between float and formats of 16 and 8 bits, one number at a time. Pure functions.
#ifndef BATON_COMMON_TENSOR_NUMBER_FORMATS_H_
#define BATON_COMMON_TENSOR_NUMBER_FORMATS_H_

#include <bit>
#include <cstdint>

namespace baton {

// bfloat16 is the upper half of a float: exact.
inline float Bf16ToF32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; a NaN stays one.
inline uint16_t F32ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE 754 binary16: exact.
inline float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  if ((bits & 0x7c00u) == 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | rest);
  // 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal.
  const float magnitude = std::bit_cast<float>(rest) * 5192296858534827628530496329220096.0f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Rounds to nearest, ties to even; 65520 and above become infinity; a NaN stays one.
inline uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 1/2 leaves the subnormal's bits, rounded, at the bottom of the mantissa.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

inline constexpr float kE4m3Highest = 448.0f;

// What a row is multiplied with so that its largest number, `highest`, becomes `most`, at most
// 2^15. A row that is as good as zero becomes zero: its factor would not be finite.
constexpr float RowFactor(float highest, float most) {
  return highest > 0x1p-100f ? most / highest : 0.0f;
}

// E4M3 (Open Compute Project, "8-bit Floating Point Specification", 2023), which has no
// infinities: exact.
inline float E4m3ToF32(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7fu) << 20;
  if ((bits & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  // 2^120 moves the exponent's bias from 7 to 127, and makes subnormals normal.
  const float magnitude = std::bit_cast<float>(rest) * 1329227995784915872903807060280344576.0f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Rounds to nearest, ties to even; above 448 it saturates; a NaN stays one.
inline uint8_t F32ToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);
  if (magnitude < 0x3c800000u) {
    // Below 2^-6: adding 2^14 leaves the subnormal's bits, rounded, at the bottom of the mantissa.
    const float shifted = std::bit_cast<float>(magnitude) + 16384.0f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000u));
  }
  const uint32_t rounded = magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | (rounded >> 20));
}

}  // namespace baton

#endif  // BATON_COMMON_TENSOR_NUMBER_FORMATS_H_
