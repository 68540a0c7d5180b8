#include "common/kernels/cuda/cuda_packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/kernels/byte_row.h"
#include "common/kernels/cuda/cuda_linear.h"
#include "common/kernels/cuda/cuda_state.h"
#include "common/tensor/number_formats.h"

namespace baton::cuda {
namespace {

// Rows that a thread packs at a time.
constexpr size_t kRowsOfTask = 64;

float ReadNumber(const std::byte* row, size_t index, DType type) {
  if (type == DType::kF32) {
    float value = 0.0f;
    std::memcpy(&value, row + index * sizeof(value), sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, row + index * sizeof(bits), sizeof(bits));
  return type == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

// Packs single rows; false, and what does not fit, if a number has no place in the form.
class RowPacker {
 public:
  RowPacker(const ConstTensorView& matrix, WeightForm form, DType activations, std::byte* to)
      : matrix_(matrix), form_(form), activations_(activations), to_(to) {}

  bool Pack(size_t output, float* row, float* misfit) const {
    const size_t inputs = matrix_.dim(1);
    const std::byte* from = matrix_.data() + output * inputs * DTypeBytes(matrix_.dtype());
    for (size_t i = 0; i < inputs; ++i) row[i] = ReadNumber(from, i, matrix_.dtype());
    return form_ == WeightForm::kInt8 || form_ == WeightForm::kFp8
               ? PackBytes(output, row, misfit)
               : PackFloats(output, row, misfit);
  }

 private:
  bool PackFloats(size_t output, const float* row, float* misfit) const {
    const size_t inputs = matrix_.dim(1);
    std::byte* to = to_ + output * inputs * DTypeBytes(activations_);
    if (activations_ == DType::kF32) {
      std::memcpy(to, row, inputs * sizeof(float));
      return true;
    }
    const bool bf16 = activations_ == DType::kBF16;
    for (size_t i = 0; i < inputs; ++i) {
      const uint16_t bits = bf16 ? F32ToBf16(row[i]) : F32ToF16(row[i]);
      if (std::isfinite(row[i]) && !std::isfinite(bf16 ? Bf16ToF32(bits) : F16ToF32(bits))) {
        *misfit = row[i];
        return false;
      }
      std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
    }
    return true;
  }

  bool PackBytes(size_t output, const float* row, float* misfit) const {
    const size_t inputs = matrix_.dim(1);
    if (const std::optional<float> found = FindMisfit({row, inputs})) {
      *misfit = *found;
      return false;
    }
    std::byte* to = to_ + output * inputs;
    const float scale = RoundToBytes({row, inputs}, form_, [&](size_t i, int8_t number) {
      to[i] = static_cast<std::byte>(number);
    });
    std::memcpy(to_ + ScalesOffset(matrix_.dim(0), inputs) + output * sizeof(scale), &scale,
                sizeof(scale));
    return true;
  }

  const ConstTensorView& matrix_;
  const WeightForm form_;
  const DType activations_;
  std::byte* const to_;
};

absl::StatusOr<PackedWeight> Bring(Device& device, const ConstTensorView& matrix,
                                   WeightFormat format, const std::byte* packed, size_t bytes) {
  BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device.Allocate(bytes));
  BATON_RETURN_IF_ERROR(device.CopyFromHost(memory.data(), packed, bytes));
  return PackedWeight(format, matrix.dim(0), matrix.dim(1), std::move(memory),
                      /*plain=*/packed == matrix.data());
}

}  // namespace

absl::StatusOr<PackedWeight> PackWeightCuda(KernelContext& context, Device& device,
                                            const ConstTensorView& matrix, WeightFormat format) {
  BATON_RETURN_IF_ERROR(format.Check());
  if (format.form == WeightForm::kInt4) {
    return absl::UnimplementedError("cannot be int4 on a GPU yet");
  }
  const size_t outputs = matrix.dim(0);
  const size_t inputs = matrix.dim(1);
  const DType stored = StoredAs(format.form, context.activations());
  if (HasScales(stored)) {
    auto& state = static_cast<CudaState&>(*context.state());
    state.ExpectScratch(WidenedWeightBytes(outputs, inputs, context.activations()));
  }
  if (matrix.dtype() == stored) {
    return Bring(device, matrix, format, matrix.data(), matrix.bytes());
  }
  const size_t bytes = HasScales(stored) ? ScalesOffset(outputs, inputs) + outputs * sizeof(float)
                                         : outputs * inputs * DTypeBytes(stored);
  std::vector<std::byte> packed(bytes);
  const RowPacker packer(matrix, format.form, context.activations(), packed.data());
  std::vector<float> misfits(context.threads().count());
  std::atomic<uint32_t> failed = 0;  // A thread that met a misfit, plus one.
  const size_t tasks = (outputs + kRowsOfTask - 1) / kRowsOfTask;
  context.threads().ParallelFor(static_cast<uint32_t>(tasks), [&](uint32_t task, uint32_t thread) {
    float* row = context.Scratch(thread, inputs);
    const size_t end = std::min(outputs, (task + 1) * kRowsOfTask);
    for (size_t output = task * kRowsOfTask; output < end && failed == 0; ++output) {
      if (!packer.Pack(output, row, &misfits[thread])) failed.store(thread + 1);
    }
  });
  if (failed != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", misfits[failed - 1], ", which does not fit into ", DTypeName(stored)));
  }
  return Bring(device, matrix, format, packed.data(), bytes);
}

}  // namespace baton::cuda
