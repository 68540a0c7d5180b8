#include "common/kernels/cpu/cpu_packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kernels/byte_row.h"
#include "common/tensor/number_formats.h"

namespace baton {
namespace {

size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Stored bytes need not be aligned.
void ReadRow(const ConstTensorView& matrix, size_t row, float* out) {
  const size_t inputs = matrix.dim(1);
  const std::byte* from = matrix.data() + row * inputs * DTypeBytes(matrix.dtype());
  if (matrix.dtype() == DType::kF32) {
    std::memcpy(out, from, inputs * sizeof(float));
    return;
  }
  for (size_t i = 0; i < inputs; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from + i * sizeof(bits), sizeof(bits));
    out[i] = matrix.dtype() == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
  }
}

// Packs the outputs of one panel. Each returns false, with the number, if one does not fit.
class PanelPacker {
 public:
  PanelPacker(const ConstTensorView& matrix, const WeightFormat& format, std::byte* data)
      : matrix_(matrix),
        format_(format),
        layout_(PanelLayoutOf(format, matrix.dim(0), matrix.dim(1))),
        data_(data) {}

  // `row` has room for padded_inputs floats.
  bool Pack(size_t panel, float* row, float* misfit) const {
    std::byte* to = data_ + panel * layout_.panel_bytes;
    for (size_t column = 0; column < kPanelColumns; ++column) {
      const size_t output = panel * kPanelColumns + column;
      std::fill(row, row + layout_.padded_inputs, 0.0f);
      if (output < matrix_.dim(0)) ReadRow(matrix_, output, row);
      if (!PackOutput(row, column, output, to, misfit)) return false;
    }
    return true;
  }

 private:
  bool PackOutput(const float* row, size_t column, size_t output, std::byte* to,
                  float* misfit) const {
    switch (format_.form) {
      case WeightForm::kF32:
        for (size_t i = 0; i < layout_.padded_inputs; ++i) {
          std::memcpy(to + (i * kPanelColumns + column) * sizeof(float), row + i, sizeof(float));
        }
        return true;
      case WeightForm::kBF16:
        if (format_.pairs()) return PackPairs(row, column, to, misfit);
        return PackHalves(row, column, F32ToBf16, Bf16ToF32, to, misfit);
      case WeightForm::kF16:
        return PackHalves(row, column, F32ToF16, F16ToF32, to, misfit);
      case WeightForm::kInt8:
        return PackInt8(row, column, output, to, misfit);
      case WeightForm::kInt4:
        return PackInt4(row, column, to, misfit);
      case WeightForm::kFp8:
        return PackFp8(row, column, output, to, misfit);
    }
    return false;
  }

  template <typename Narrow, typename Widen>
  bool PackHalves(const float* row, size_t column, const Narrow& narrow, const Widen& widen,
                  std::byte* to, float* misfit) const {
    for (size_t i = 0; i < layout_.padded_inputs; ++i) {
      const uint16_t bits = narrow(row[i]);
      if (std::isfinite(row[i]) && !std::isfinite(widen(bits))) {
        *misfit = row[i];
        return false;
      }
      std::memcpy(to + (i * kPanelColumns + column) * sizeof(bits), &bits, sizeof(bits));
    }
    return true;
  }

  bool PackPairs(const float* row, size_t column, std::byte* to, float* misfit) const {
    for (size_t i = 0; i < layout_.padded_inputs; ++i) {
      const uint16_t bits = RoundToPair(row[i]);
      if (!std::isfinite(Bf16ToF32(bits))) {
        *misfit = row[i];
        return false;
      }
      std::memcpy(to + ((i / 2 * kPanelColumns + column) * 2 + i % 2) * sizeof(bits), &bits,
                  sizeof(bits));
    }
    return true;
  }

  bool IsFinite(const float* row, float* misfit) const {
    const std::optional<float> found = FindMisfit({row, layout_.padded_inputs});
    if (found.has_value()) *misfit = *found;
    return !found.has_value();
  }

  bool PackFp8(const float* row, size_t column, size_t output, std::byte* to, float* misfit) const {
    if (!IsFinite(row, misfit)) return false;
    const auto store = [&](size_t i, int8_t number) {
      to[i * kPanelColumns + column] = static_cast<std::byte>(number);
    };
    StoreScale(output, RoundToBytes({row, layout_.padded_inputs}, format_.form, store));
    return true;
  }

  bool PackInt8(const float* row, size_t column, size_t output, std::byte* to,
                float* misfit) const {
    if (!IsFinite(row, misfit)) return false;
    const auto store = [&](size_t i, int8_t number) {
      to[(i / 4 * kPanelColumns + column) * 4 + i % 4] =
          static_cast<std::byte>(number + kInt8Offset);
    };
    StoreScale(output, RoundToBytes({row, layout_.padded_inputs}, format_.form, store));
    return true;
  }

  void StoreScale(size_t output, float scale) const {
    std::memcpy(data_ + layout_.scales_offset + output * sizeof(float), &scale, sizeof(scale));
  }

  bool PackInt4(const float* row, size_t column, std::byte* to, float* misfit) const {
    if (!IsFinite(row, misfit)) return false;
    for (size_t group = 0; group * kInt4Group < layout_.padded_inputs; ++group) {
      PackInt4Group(row + group * kInt4Group, column, to + group * kInt4GroupBytes);
    }
    return true;
  }

  // The number of the greatest magnitude becomes -8, so that all of [-8, 7] is in use. The scale is
  // rounded first and the numbers by what it became.
  static void PackInt4Group(const float* row, size_t column, std::byte* to) {
    float extreme = 0.0f;
    for (size_t i = 0; i < kInt4Group; ++i) {
      if (std::abs(row[i]) > std::abs(extreme)) extreme = row[i];
    }
    const uint16_t bits = F32ToBf16(extreme / -8.0f);
    const float scale = Bf16ToF32(bits);
    for (size_t i = 0; i < kInt4Group; ++i) {
      const int32_t number =
          scale == 0.0f ? 0 : static_cast<int32_t>(std::nearbyint(row[i] / scale));
      const auto half = static_cast<std::byte>(std::clamp(number, -8, 7) + kInt4Offset);
      std::byte& both = to[(i / 8 * kPanelColumns + column) * 4 + i % 4];
      both = i % 8 < 4 ? half : both | half << 4;
    }
    std::memcpy(to + kInt4Group / 2 * kPanelColumns + column * sizeof(bits), &bits, sizeof(bits));
  }

  const ConstTensorView& matrix_;
  const WeightFormat format_;
  const PanelLayout layout_;
  std::byte* const data_;
};

}  // namespace

PanelLayout PanelLayoutOf(const WeightFormat& format, size_t outputs, size_t inputs) {
  PanelLayout layout;
  layout.panel_count = (outputs + kPanelColumns - 1) / kPanelColumns;
  size_t scales = 0;
  switch (format.form) {
    case WeightForm::kF32:
      layout.padded_inputs = inputs;
      layout.panel_bytes = inputs * kPanelColumns * sizeof(float);
      break;
    case WeightForm::kBF16:
    case WeightForm::kF16:
      layout.padded_inputs = format.pairs() ? RoundUp(inputs, 2) : inputs;
      layout.panel_bytes = layout.padded_inputs * kPanelColumns * sizeof(uint16_t);
      break;
    case WeightForm::kInt8:
      layout.padded_inputs = RoundUp(inputs, kInt4Group);
      layout.panel_bytes = layout.padded_inputs * kPanelColumns;
      scales = layout.panel_count * kPanelColumns * sizeof(float);
      break;
    case WeightForm::kFp8:
      layout.padded_inputs = inputs;
      layout.panel_bytes = inputs * kPanelColumns;
      scales = layout.panel_count * kPanelColumns * sizeof(float);
      break;
    case WeightForm::kInt4:
      layout.padded_inputs = RoundUp(inputs, kInt4Group);
      layout.panel_bytes = layout.padded_inputs / kInt4Group * kInt4GroupBytes;
      break;
  }
  layout.scales_offset = layout.panel_count * layout.panel_bytes;
  layout.bytes = layout.scales_offset + scales;
  return layout;
}

absl::StatusOr<PackedWeight> PackWeightCpu(KernelContext& context, Device& device,
                                           const ConstTensorView& matrix, WeightFormat format) {
  BATON_RETURN_IF_ERROR(format.Check());
  if (format.form == WeightForm::kInt8 && matrix.dim(1) > kInt8InputsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "has ", matrix.dim(1), " inputs; int8 sums of a CPU have room for ", kInt8InputsMax));
  }
  const PanelLayout layout = PanelLayoutOf(format, matrix.dim(0), matrix.dim(1));
  BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device.Allocate(layout.bytes));
  const PanelPacker packer(matrix, format, memory.data());
  std::vector<float> misfits(context.threads().count());
  std::atomic<uint32_t> failed = 0;  // A thread that met a misfit, plus one.
  context.threads().ParallelFor(static_cast<uint32_t>(layout.panel_count),
                                [&](uint32_t panel, uint32_t thread) {
                                  if (failed.load(std::memory_order_relaxed) != 0) return;
                                  float* row = context.Scratch(thread, layout.padded_inputs);
                                  if (!packer.Pack(panel, row, &misfits[thread]))
                                    failed.store(thread + 1);
                                });
  if (failed != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "has ", misfits[failed - 1], ", which does not fit into ", WeightFormName(format.form)));
  }
  return PackedWeight(format, matrix.dim(0), matrix.dim(1), std::move(memory));
}

void PackTile(const float* x, size_t k, size_t first, size_t count, float* packed) {
  float* to = packed + first * k;
  for (size_t r = 0; r < count; ++r) {
    const float* row = x + (first + r) * k;
    for (size_t i = 0; i < k; ++i) to[i * count + r] = row[i];
  }
}

void QuantizeTile(const CpuOps& ops, const float* x, size_t k, size_t first, size_t count,
                  const QuantizedRows& to, int8_t* scratch) {
  const size_t padded = to.padded;
  const size_t groups = padded / kInt4Group;
  int8_t* tile = to.bytes + first * padded;
  for (size_t r = 0; r < count; ++r) {
    const size_t byte_row = first + r;
    const size_t row = byte_row / to.byte_count;
    const size_t byte = byte_row % to.byte_count;
    if (byte == 0) to.scales[row] = ops.quantize(x + row * k, k, padded, to.byte_count, scratch);
    const int8_t* bytes = scratch + byte * padded;
    int32_t sum = 0;
    for (size_t group = 0; group < groups; ++group) {
      int32_t group_sum = 0;
      for (size_t i = 0; i < kInt4Group; ++i) group_sum += bytes[group * kInt4Group + i];
      to.group_sums[first * groups + group * count + r] = group_sum;
      sum += group_sum;
    }
    to.sums[byte_row] = sum;
    for (size_t i = 0; i < padded; i += 4) std::memcpy(tile + i * count + r * 4, bytes + i, 4);
  }
}

}  // namespace baton
