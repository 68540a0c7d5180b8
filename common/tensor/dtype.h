// Element types of weights, activations and the KV cache.
#ifndef BATON_COMMON_TENSOR_DTYPE_H_
#define BATON_COMMON_TENSOR_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace baton {

// The values are part of KvLayout's fingerprint: never renumber.
enum class DType : uint8_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kI8 = 3,
  kFp8 = 4,  // E4M3 of the Open Compute Project's "8-bit Floating Point Specification", 2023.
};

constexpr size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
    case DType::kFp8:
      return 1;
  }
  return 0;
}

// Numbers of 8 bits mean something only with scales: see kv_row.h and packed_weight.h.
constexpr bool HasScales(DType dtype) { return DTypeBytes(dtype) == 1; }

// "f32", "f16", "bf16", "int8", "fp8": as flags and messages spell them.
const char* DTypeName(DType dtype);
// kInvalidArgument names the choices.
absl::StatusOr<DType> ParseDType(const std::string& name);

}  // namespace baton

#endif  // BATON_COMMON_TENSOR_DTYPE_H_
