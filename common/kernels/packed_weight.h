// A matrix of weights in the form and the order that a device's Linear wants, made once by
// PackWeight (kernels.h).
#ifndef BATON_COMMON_KERNELS_PACKED_WEIGHT_H_
#define BATON_COMMON_KERNELS_PACKED_WEIGHT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/device/device.h"
#include "common/tensor/dtype.h"

namespace baton {

// Floats as they are. kInt8 and kFp8 (E4M3): a number of 8 bits and a scale per output. kInt4: a
// number of 4 bits, and a scale for each 32 inputs of an output.
enum class WeightForm { kF32, kBF16, kF16, kInt8, kInt4, kFp8 };

// Inputs that a CPU's integer sums for kInt8 have room for in 32 bits: a term, the offset of the
// weights taken into account, is at most 2^14.
inline constexpr size_t kInt8InputsMax = (size_t{1} << 17) - 1;

// "f32", "bf16", "f16", "int8", "fp8", "int4": as flags and messages spell them.
const char* WeightFormName(WeightForm form);
// kInvalidArgument names the choices.
absl::StatusOr<WeightForm> ParseWeightForm(const std::string& name);
WeightForm WeightFormOf(DType dtype);  // REQUIRES: a float type.

struct WeightFormat {
  WeightForm form = WeightForm::kF32;
  // What each activation is rounded to. With float weights 4 bytes, as it is; with kBF16 also 2:
  // bfloat16, for which some processors have faster instructions. With integer weights, by a scale
  // per token, 1 byte, or 2 bytes, whose error is far below that of the weights. 0: the most that
  // the form has.
  uint32_t activation_bytes = 0;

  // Whether weights and activations are multiplied as integers.
  bool integers() const { return form == WeightForm::kInt8 || form == WeightForm::kInt4; }
  // The activations' bytes, with 0 resolved.
  uint32_t ActivationBytes() const;
  // kInvalidArgument: "activations of 8 bits do not go with bf16 weights; choose 16 or 32".
  absl::Status Check() const;
  // Whether weights and activations are multiplied as pairs of bfloat16.
  bool pairs() const { return form == WeightForm::kBF16 && ActivationBytes() == 2; }
  // "bf16", "int8a16": for the numerics fingerprint.
  std::string name() const;
};

// Move-only; the device outlives it.
class PackedWeight {
 public:
  PackedWeight() = default;
  // `plain`: the memory holds the matrix as it was given.
  PackedWeight(WeightFormat format, size_t outputs, size_t inputs, DeviceMemory memory,
               bool plain = false)
      : format_(format),
        outputs_(outputs),
        inputs_(inputs),
        plain_(plain),
        memory_(std::move(memory)) {}

  const WeightFormat& format() const { return format_; }
  size_t outputs() const { return outputs_; }
  size_t inputs() const { return inputs_; }
  // Whether data() is [outputs, inputs] of the type that was packed: others can read it, too.
  bool plain() const { return plain_; }
  const std::byte* data() const { return memory_.data(); }
  size_t bytes() const { return memory_.bytes(); }

 private:
  WeightFormat format_;
  size_t outputs_ = 0;
  size_t inputs_ = 0;
  bool plain_ = false;
  DeviceMemory memory_;
};

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_PACKED_WEIGHT_H_
