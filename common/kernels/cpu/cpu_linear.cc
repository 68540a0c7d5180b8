#include "common/kernels/cpu/cpu_linear.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/cpu_packing.h"

namespace baton {
namespace {

// Waking threads costs microseconds: a task should do at least about so many multiplications.
constexpr size_t kTaskProducts = 64 * 1024;
constexpr size_t kByteCountMax = 2;

using LinearFunction = void (*)(const LinearTask&);

LinearFunction LinearFor(const CpuOps& ops, const WeightFormat& format) {
  switch (format.form) {
    case WeightForm::kF32:
      return ops.linear_f32;
    case WeightForm::kBF16:
      return format.pairs() ? ops.linear_pairs : ops.linear_bf16;
    case WeightForm::kF16:
      return ops.linear_f16;
    case WeightForm::kInt8:
      return ops.linear_int8;
    case WeightForm::kInt4:
      return ops.linear_int4;
    case WeightForm::kFp8:
      return ops.linear_fp8;
  }
  return nullptr;
}

size_t RoundToLine(size_t floats) { return (floats + 15) / 16 * 16; }

// x in the forms that the weights of a call ask for, packed by all threads. The tiles of each group
// begin anew.
class PackedInput {
 public:
  PackedInput(KernelContext& context, const ConstTensorView& x, std::span<const LinearGroup> groups)
      : context_(context), x_(x.f32()), rows_(x.dim(0)), k_(x.dim(1)), groups_(groups) {
    for (const LinearGroup& group : groups) {
      has_tiles_ = has_tiles_ || group.rows > 1;
      for (const LinearOutput& output : group.outputs) Want(output.weight->format());
    }
    Allocate();
    if (wants_floats_ && has_tiles_) PackFloats();
    if (wants_pairs_) PackPairs();
    for (size_t i = 0; i < kByteCountMax; ++i) {
      if (wants_bytes_[i]) Quantize(quantized_[i]);
    }
  }

  // Of rows from `row` on, which begin a tile.
  void Fill(const WeightFormat& format, size_t row, LinearTask* task) const {
    if (format.pairs()) {
      task->x_pairs = pairs_ + row * PairRowBytes();
      return;
    }
    if (!format.integers()) {
      task->x = floats_ + row * k_;
      return;
    }
    const QuantizedRows& bytes = quantized_[format.ActivationBytes() - 1];
    const size_t byte_row = row * bytes.byte_count;
    task->x_bytes = bytes.bytes + byte_row * bytes.padded;
    task->x_byte_count = bytes.byte_count;
    task->x_scales = bytes.scales + row;
    task->x_sums = format.form == WeightForm::kInt8
                       ? bytes.sums + byte_row
                       : bytes.group_sums + byte_row * (bytes.padded / kInt4Group);
  }

 private:
  void Want(const WeightFormat& format) {
    if (format.integers()) {
      const uint32_t bytes = format.ActivationBytes();
      quantized_[bytes - 1].byte_count = bytes;
      wants_bytes_[bytes - 1] = true;
    } else if (format.pairs()) {
      wants_pairs_ = true;
    } else {
      wants_floats_ = true;
    }
  }

  size_t PairRowBytes() const { return (k_ + 1) / 2 * context_.cpu_ops().pair_bytes; }

  void Allocate() {
    const size_t padded = (k_ + kInt4Group - 1) / kInt4Group * kInt4Group;
    const auto bytes_floats = [&](size_t byte_count) {
      const size_t byte_rows = rows_ * byte_count;
      return RoundToLine(byte_rows * padded / sizeof(float)) + RoundToLine(rows_) +
             RoundToLine(byte_rows) + RoundToLine(byte_rows * (padded / kInt4Group));
    };
    size_t floats = wants_floats_ && has_tiles_ ? RoundToLine(rows_ * k_) : 0;
    const size_t first_pairs = floats;
    if (wants_pairs_) floats += RoundToLine(rows_ * PairRowBytes() / sizeof(float));
    const size_t first_bytes = floats;
    for (size_t i = 0; i < kByteCountMax; ++i) floats += wants_bytes_[i] ? bytes_floats(i + 1) : 0;
    float* next = context_.SharedScratch(floats);
    floats_ = has_tiles_ ? next : x_;  // One row is a tile as it is.
    packed_ = next;
    pairs_ = reinterpret_cast<std::byte*>(next + first_pairs);
    next += first_bytes;
    const auto take = [&next](size_t count) {
      float* taken = next;
      next += RoundToLine(count);
      return taken;
    };
    for (size_t i = 0; i < kByteCountMax; ++i) {
      if (!wants_bytes_[i]) continue;
      QuantizedRows& to = quantized_[i];
      const size_t byte_rows = rows_ * to.byte_count;
      to.padded = padded;
      to.bytes = reinterpret_cast<int8_t*>(take(byte_rows * padded / sizeof(float)));
      to.scales = take(rows_);
      to.sums = reinterpret_cast<int32_t*>(take(byte_rows));
      to.group_sums = reinterpret_cast<int32_t*>(take(byte_rows * (padded / kInt4Group)));
    }
  }

  // Calls body(first row, rows, thread) for each tile, where a row of x counts `per_row` times.
  template <typename Body>
  void ForEachTile(size_t per_row, const Body& body) {
    struct Rows {
      size_t begin = 0;
      size_t end = 0;
    };
    std::vector<Rows> tasks;  // Whole tiles, and what is left of each group.
    for (const LinearGroup& group : groups_) {
      const size_t end = (group.row + group.rows) * per_row;
      for (size_t row = group.row * per_row; row < end; row += kTileRowsMax) {
        tasks.push_back({row, std::min(end, row + kTileRowsMax)});
      }
    }
    context_.threads().ParallelFor(static_cast<uint32_t>(tasks.size()),
                                   [&](uint32_t task, uint32_t thread) {
                                     const size_t end = tasks[task].end;
                                     for (size_t row = tasks[task].begin; row < end;) {
                                       const size_t count = TileRows(end - row);
                                       body(row, count, thread);
                                       row += count;
                                     }
                                   });
  }

  void PackFloats() {
    ForEachTile(1, [this](size_t row, size_t count, uint32_t /*thread*/) {
      PackTile(x_, k_, row, count, packed_);
    });
  }

  void PackPairs() {
    ForEachTile(1, [this](size_t row, size_t count, uint32_t thread) {
      context_.cpu_ops().pack_pairs(x_ + row * k_, k_, count, context_.Scratch(thread, k_ + 1),
                                    pairs_ + row * PairRowBytes());
    });
  }

  void Quantize(const QuantizedRows& to) {
    ForEachTile(to.byte_count, [&](size_t row, size_t count, uint32_t thread) {
      float* scratch = context_.Scratch(thread, to.byte_count * to.padded / sizeof(float));
      QuantizeTile(context_.cpu_ops(), x_, k_, row, count, to, reinterpret_cast<int8_t*>(scratch));
    });
  }

  KernelContext& context_;
  const float* const x_;
  const size_t rows_;
  const size_t k_;
  const std::span<const LinearGroup> groups_;
  bool has_tiles_ = false;  // Some group has more than one row.
  bool wants_floats_ = false;
  bool wants_pairs_ = false;
  std::array<bool, kByteCountMax> wants_bytes_ = {};
  float* packed_ = nullptr;
  const float* floats_ = nullptr;
  std::byte* pairs_ = nullptr;
  std::array<QuantizedRows, kByteCountMax> quantized_;
};

// Some panels of one weight, for some rows of a group.
struct Part {
  const LinearOutput* output = nullptr;
  size_t panel = 0;
  size_t panel_count = 0;
  size_t row = 0;    // Of the output.
  size_t x_row = 0;  // The same row in x.
  size_t rows = 0;
};

size_t PanelCount(const LinearOutput& output) {
  return (output.weight->outputs() + kPanelColumns - 1) / kPanelColumns;
}

// How the work of one group is cut.
struct Cut {
  size_t panels = 1;  // Of one weight, in a part.
  size_t rows = 1;
};

// `panels` of all groups together. REQUIRES: panels > 0.
Cut CutOf(size_t panels, size_t rows, size_t k, size_t threads) {
  BATON_CHECK(panels > 0);
  const size_t wanted = 4 * threads;
  // Several panels share x while it is in the cache; but each thread should get some tasks.
  const size_t least = kTaskProducts / (rows * k * kPanelColumns) + 1;
  const size_t shared = rows > kTileRowsMax ? std::max<size_t>(1, panels / wanted) : 1;
  const size_t blocks =
      std::min((rows + kTileRowsMax - 1) / kTileRowsMax, std::max<size_t>(1, wanted / panels));
  return {.panels = std::min(kTaskPanelsMax, std::max(least, shared)),
          .rows = ((rows + blocks - 1) / blocks + kTileRowsMax - 1) / kTileRowsMax * kTileRowsMax};
}

std::vector<Part> Divide(std::span<const LinearGroup> groups, size_t k, size_t threads) {
  size_t panels = 0;
  for (const LinearGroup& group : groups) {
    for (const LinearOutput& output : group.outputs) panels += PanelCount(output);
  }
  std::vector<Part> parts;
  // First the panels that the first thread packed, of every weight, then those of the second, …
  for (size_t thread = 0; thread < threads; ++thread) {
    for (const LinearGroup& group : groups) {
      if (group.rows == 0 || group.outputs.empty()) continue;
      const Cut cut = CutOf(panels, group.rows, k, threads);
      for (const LinearOutput& output : group.outputs) {
        const size_t end = PanelCount(output) * (thread + 1) / threads;
        for (size_t panel = PanelCount(output) * thread / threads; panel < end;
             panel += cut.panels) {
          for (size_t row = 0; row < group.rows; row += cut.rows) {
            parts.push_back({.output = &output,
                             .panel = panel,
                             .panel_count = std::min(cut.panels, end - panel),
                             .row = row,
                             .x_row = group.row + row,
                             .rows = std::min(cut.rows, group.rows - row)});
          }
        }
      }
    }
  }
  return parts;
}

void AddBias(const float* bias, size_t rows, size_t columns, float* out, size_t out_stride) {
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column)
      out[row * out_stride + column] += bias[column];
  }
}

void RunPart(KernelContext& context, const Part& part, const PackedInput& input, uint32_t thread) {
  const PackedWeight& weight = *part.output->weight;
  const PanelLayout layout = PanelLayoutOf(weight.format(), weight.outputs(), weight.inputs());
  const size_t column = part.panel * kPanelColumns;
  const size_t columns = std::min(part.panel_count * kPanelColumns, weight.outputs() - column);
  const size_t last = columns % kPanelColumns;  // Of a panel that is not full.
  float* scratch =
      context.Scratch(thread, kLinearScratchFloats + (last == 0 ? 0 : part.rows * kPanelColumns));
  LinearTask task = {
      .panels = weight.data() + part.panel * layout.panel_bytes,
      .panel_bytes = layout.panel_bytes,
      .panel_count = part.panel_count,
      .k = layout.padded_inputs,
      .rows = part.rows,
      .out = part.output->out.f32() + part.row * weight.outputs() + column,
      .out_stride = weight.outputs(),
      .last_out = last == 0 ? nullptr : scratch + kLinearScratchFloats,
      .scratch = scratch,
      .scales = reinterpret_cast<const float*>(weight.data() + layout.scales_offset) + column,
  };
  input.Fill(weight.format(), part.x_row, &task);
  LinearFor(context.cpu_ops(), weight.format())(task);
  for (size_t row = 0; last > 0 && row < part.rows; ++row) {
    std::memcpy(task.out + row * task.out_stride + columns - last,
                task.last_out + row * kPanelColumns, last * sizeof(float));
  }
  if (!part.output->bias.empty()) {
    AddBias(part.output->bias.f32() + column, part.rows, columns, task.out, task.out_stride);
  }
}

}  // namespace

void GroupedLinearCpu(KernelContext& context, const ConstTensorView& x,
                      std::span<const LinearGroup> groups) {
  const std::vector<Part> parts = Divide(groups, x.dim(1), context.threads().count());
  if (parts.empty()) return;
  const PackedInput input(context, x, groups);
  context.threads().ParallelFor(
      static_cast<uint32_t>(parts.size()),
      [&](uint32_t index, uint32_t thread) { RunPart(context, parts[index], input, thread); });
}

}  // namespace baton
