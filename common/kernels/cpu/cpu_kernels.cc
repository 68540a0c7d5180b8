// The CPU's kernels: divide an operation into tasks for the threads; the loops are in CpuOps.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/kernel_table.h"
#include "common/tensor/number_formats.h"

namespace baton {
namespace {

// Waking threads costs microseconds: a task should do at least about so many operations.
constexpr size_t kTaskOperations = 64 * 1024;
// Rows of x that a task of Linear takes: they stay in the cache while weights stream past. A
// multiple of every tile height.
constexpr size_t kLinearRows = 48;
// Query vectors that share one pass over K and V.
constexpr uint32_t kAttentionQueries = 32;

// Runs body(begin, end, thread) over [0, count), cut where `cost` operations per item make it worth
// it.
template <typename Body>
void ForRanges(KernelContext& context, size_t count, size_t cost, const Body& body) {
  const size_t grain = std::max<size_t>(1, kTaskOperations / std::max<size_t>(1, cost));
  const size_t wanted = 4 * context.threads().count();
  const size_t step = std::max(grain, (count + wanted - 1) / wanted);
  const size_t tasks = (count + step - 1) / step;
  context.threads().ParallelFor(static_cast<uint32_t>(tasks), [&](uint32_t task, uint32_t thread) {
    const size_t begin = task * step;
    body(begin, std::min(count, begin + step), thread);
  });
}

void EmbeddingCpu(KernelContext& context, const ConstTensorView& table,
                  std::span<const TokenId> ids, const TensorView& out) {
  const size_t n = table.dim(1);
  float* const to = out.f32();
  ForRanges(context, ids.size(), n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t i = begin; i < end; ++i) {
      const std::byte* row = table.data() + ids[i] * n * DTypeBytes(table.dtype());
      const auto* halves = reinterpret_cast<const uint16_t*>(row);
      float* out_row = to + i * n;
      switch (table.dtype()) {
        case DType::kF32:
          std::memcpy(out_row, row, n * sizeof(float));
          break;
        case DType::kBF16:
          for (size_t d = 0; d < n; ++d) out_row[d] = Bf16ToF32(halves[d]);
          break;
        case DType::kF16:
          for (size_t d = 0; d < n; ++d) out_row[d] = F16ToF32(halves[d]);
          break;
        case DType::kI8:
          BATON_CHECK_MSG(false, "no embedding of this type");
      }
    }
  });
}

void RmsNormCpu(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
                float epsilon, const TensorView& out) {
  const size_t n = x.dim(1);
  ForRanges(context, x.dim(0), n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t row = begin; row < end; ++row) {
      context.cpu_ops().rms_norm(x.f32() + row * n, weight.f32(), epsilon, n, out.f32() + row * n);
    }
  });
}

using LinearFunction = void (*)(const LinearTask&);

LinearFunction LinearFor(const CpuOps& ops, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ops.linear_f32;
    case DType::kBF16:
      return ops.linear_bf16;
    case DType::kF16:
      return ops.linear_f16;
    case DType::kI8:
      break;
  }
  BATON_CHECK_MSG(false, "no matrix product of this type");
  return nullptr;
}

void LinearCpu(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
               const ConstTensorView& bias, const TensorView& out) {
  const LinearFunction function = LinearFor(context.cpu_ops(), weight.dtype());
  const size_t m = x.dim(0);
  const size_t k = x.dim(1);
  const size_t n = weight.dim(0);
  if (m == 0 || n == 0) return;
  const size_t row_blocks = (m + kLinearRows - 1) / kLinearRows;
  // Columns per task: enough work, a multiple of every tile's width, yet some tasks for each
  // thread.
  const size_t rows_of_task = std::min(m, kLinearRows);
  const size_t least = kTaskOperations / std::max<size_t>(1, rows_of_task * k) + 1;
  const size_t wanted = std::max<size_t>(1, 4 * context.threads().count() / row_blocks);
  const size_t columns = (std::max(least, (n + wanted - 1) / wanted) + 3) / 4 * 4;
  const size_t column_blocks = (n + columns - 1) / columns;
  const LinearTask whole = {
      .x = x.f32(),
      .weight = weight.data(),
      .bias = bias.empty() ? nullptr : bias.f32(),
      .out = out.f32(),
      .k = k,
      .columns = n,
  };
  context.threads().ParallelFor(static_cast<uint32_t>(row_blocks * column_blocks),
                                [&](uint32_t index, uint32_t thread) {
                                  LinearTask task = whole;
                                  // Neighbouring tasks share weights.
                                  task.row_begin = index % row_blocks * kLinearRows;
                                  task.row_end = std::min(m, task.row_begin + kLinearRows);
                                  task.column_begin = index / row_blocks * columns;
                                  task.column_end = std::min(n, task.column_begin + columns);
                                  task.scratch = context.Scratch(thread, LinearScratchFloats(k));
                                  function(task);
                                });
}

void RopeCpu(KernelContext& context, const ConstTensorView& cosines, const ConstTensorView& sines,
             const TensorView& x) {
  const size_t heads = x.dim(1);
  const size_t half = x.dim(2) / 2;
  ForRanges(context, x.dim(0), heads * half * 4, [&](size_t begin, size_t end, uint32_t) {
    for (size_t row = begin; row < end; ++row) {
      const float* cosine = cosines.f32() + row * half;
      const float* sine = sines.f32() + row * half;
      for (size_t head = 0; head < heads; ++head) {
        float* first = x.f32() + (row * heads + head) * 2 * half;
        float* second = first + half;
        for (size_t i = 0; i < half; ++i) {
          const float a = first[i];
          const float b = second[i];
          first[i] = a * cosine[i] - b * sine[i];
          second[i] = b * cosine[i] + a * sine[i];
        }
      }
    }
  });
}

void StoreKvRow(const float* from, size_t count, DType dtype, std::byte* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(to);
  for (size_t i = 0; i < count; ++i) halves[i] = F32ToBf16(from[i]);
}

void WriteKvCpu(KernelContext& context, const ConstTensorView& k, const ConstTensorView& v,
                std::span<const SequenceRows> sequences, const KvPages& pages) {
  const size_t head_dim = pages.head_dim;
  for (const SequenceRows& sequence : sequences) {
    ForRanges(context, sequence.count, 4 * pages.kv_heads * head_dim,
              [&](size_t begin, size_t end, uint32_t) {
                for (size_t i = begin; i < end; ++i) {
                  const uint32_t position = sequence.position + static_cast<uint32_t>(i);
                  for (uint32_t head = 0; head < pages.kv_heads; ++head) {
                    const size_t from = ((sequence.row + i) * pages.kv_heads + head) * head_dim;
                    StoreKvRow(k.f32() + from, head_dim, pages.dtype,
                               pages.data + pages.OffsetOf(sequence.blocks, false, head, position));
                    StoreKvRow(v.f32() + from, head_dim, pages.dtype,
                               pages.data + pages.OffsetOf(sequence.blocks, true, head, position));
                  }
                }
              });
  }
}

void AttentionCpu(KernelContext& context, const ConstTensorView& q, const KvPages& pages,
                  std::span<const SequenceRows> sequences, float scale, const TensorView& out) {
  const size_t heads = q.dim(1);
  const uint32_t heads_per_kv = static_cast<uint32_t>(heads / pages.kv_heads);
  const uint32_t tokens_per_task = std::max(1u, kAttentionQueries / heads_per_kv);
  std::vector<AttentionTask> tasks;
  for (const SequenceRows& sequence : sequences) {
    for (uint32_t begin = 0; begin < sequence.count; begin += tokens_per_task) {
      for (uint32_t kv_head = 0; kv_head < pages.kv_heads; ++kv_head) {
        const size_t offset = (sequence.row + begin) * heads * pages.head_dim +
                              static_cast<size_t>(kv_head) * heads_per_kv * pages.head_dim;
        tasks.push_back({.q = q.f32() + offset,
                         .out = out.f32() + offset,
                         .row_stride = heads * pages.head_dim,
                         .pages = pages,
                         .blocks = sequence.blocks,
                         .position = sequence.position + begin,
                         .count = std::min(tokens_per_task, sequence.count - begin),
                         .kv_head = kv_head,
                         .heads_per_kv = heads_per_kv,
                         .scale = scale});
      }
    }
  }
  context.threads().ParallelFor(
      static_cast<uint32_t>(tasks.size()), [&](uint32_t index, uint32_t thread) {
        AttentionTask task = tasks[index];
        task.scratch = context.Scratch(
            thread, AttentionScratchFloats(task.count * heads_per_kv, pages.head_dim));
        context.cpu_ops().attention(task);
      });
}

void SiluMulCpu(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
                const TensorView& out) {
  ForRanges(context, gate.elements(), 16, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().silu_mul(gate.f32() + begin, up.f32() + begin, end - begin,
                               out.f32() + begin);
  });
}

void AddCpu(KernelContext& context, const ConstTensorView& y, const TensorView& x) {
  ForRanges(context, x.elements(), 1, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().add(y.f32() + begin, end - begin, x.f32() + begin);
  });
}

void GatherRowsCpu(KernelContext& /*context*/, const ConstTensorView& x,
                   std::span<const uint32_t> rows, const TensorView& out) {
  const size_t n = x.dim(1);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(out.f32() + i * n, x.f32() + rows[i] * n, n * sizeof(float));
  }
}

}  // namespace

const KernelTable& CpuKernels() {
  static constexpr KernelTable kTable = {
      .numerics = "cpu-1",
      .embedding = EmbeddingCpu,
      .rms_norm = RmsNormCpu,
      .linear = LinearCpu,
      .rope = RopeCpu,
      .write_kv = WriteKvCpu,
      .attention = AttentionCpu,
      .silu_mul = SiluMulCpu,
      .add = AddCpu,
      .gather_rows = GatherRowsCpu,
  };
  return kTable;
}

}  // namespace baton
