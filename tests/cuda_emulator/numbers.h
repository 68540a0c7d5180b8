// Numbers of the types of activations in memory, one by one.
#ifndef BATON_TESTS_CUDA_EMULATOR_NUMBERS_H_
#define BATON_TESTS_CUDA_EMULATOR_NUMBERS_H_

#include <cstddef>
#include <cstdint>

#include "common/tensor/dtype.h"
#include "common/tensor/number_formats.h"

namespace baton::emulation {

// REQUIRES, of both: kF32, kF16 or kBF16.
inline float NumberAt(const void* data, DType type, size_t i) {
  if (type == DType::kF32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

inline void StoreNumber(void* data, DType type, size_t i, float number) {
  if (type == DType::kF32) {
    static_cast<float*>(data)[i] = number;
  } else {
    static_cast<uint16_t*>(data)[i] = type == DType::kBF16 ? F32ToBf16(number) : F32ToF16(number);
  }
}

}  // namespace baton::emulation

#endif  // BATON_TESTS_CUDA_EMULATOR_NUMBERS_H_
