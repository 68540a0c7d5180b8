#include "common/kernels/packed_weight.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace baton {

const char* WeightFormName(WeightForm form) {
  switch (form) {
    case WeightForm::kF32:
      return "f32";
    case WeightForm::kBF16:
      return "bf16";
    case WeightForm::kF16:
      return "f16";
    case WeightForm::kInt8:
      return "int8";
    case WeightForm::kInt4:
      return "int4";
    case WeightForm::kFp8:
      return "fp8";
  }
  return "invalid";
}

absl::StatusOr<WeightForm> ParseWeightForm(const std::string& name) {
  for (WeightForm form : {WeightForm::kF32, WeightForm::kBF16, WeightForm::kF16, WeightForm::kInt8,
                          WeightForm::kFp8, WeightForm::kInt4}) {
    if (name == WeightFormName(form)) return form;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown form of weights '", name,
                                                 "'; choose f32, bf16, f16, int8, fp8 or int4"));
}

WeightForm WeightFormOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return WeightForm::kF32;
    case DType::kBF16:
      return WeightForm::kBF16;
    case DType::kF16:
      return WeightForm::kF16;
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  BATON_CHECK_MSG(false, "not a float type");
  return WeightForm::kF32;
}

uint32_t WeightFormat::ActivationBytes() const {
  if (activation_bytes != 0) return activation_bytes;
  return integers() ? 2 : 4;
}

absl::Status WeightFormat::Check() const {
  const uint32_t bytes = ActivationBytes();
  const bool narrow = form == WeightForm::kBF16 || integers();
  const bool good =
      (bytes == 4 && !integers()) || (bytes == 2 && narrow) || (bytes == 1 && integers());
  if (good) return absl::OkStatus();
  const char* choices = integers() ? "8 or 16" : narrow ? "16 or 32" : "32";
  return absl::InvalidArgumentError(absl::StrCat("activations of ", 8 * bytes,
                                                 " bits do not go with ", WeightFormName(form),
                                                 " weights; choose ", choices));
}

std::string WeightFormat::name() const {
  const std::string form_name = WeightFormName(form);
  return integers() || pairs() ? absl::StrCat(form_name, "a", 8 * ActivationBytes()) : form_name;
}

}  // namespace baton
