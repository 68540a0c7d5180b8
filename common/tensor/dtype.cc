#include "common/tensor/dtype.h"

#include "absl/strings/str_cat.h"

namespace baton {

const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI8:
      return "int8";
    case DType::kFp8:
      return "fp8";
  }
  return "invalid";
}

absl::StatusOr<DType> ParseDType(const std::string& name) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kFp8}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown element type '", name, "'; choose f32, f16, bf16, int8 or fp8"));
}

}  // namespace baton
