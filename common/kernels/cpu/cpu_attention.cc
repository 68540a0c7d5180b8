#include "common/kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <vector>

#include "common/kernels/cpu/cpu_ops.h"

namespace baton {
namespace {

// Query vectors that share one pass over K and V: whole tiles of rows.
constexpr uint32_t kQueriesMax = 8 * kTileRowsMax;
// Flash decoding: few queries over a long cache are cut into parts of at least so many tiles.
constexpr uint32_t kSplitQueriesMax = 2 * kTileRowsMax;
constexpr uint32_t kPartTilesMin = 4;

std::vector<AttentionTask> Divide(const ConstTensorView& q, const KvPages& pages,
                                  std::span<const SequenceRows> sequences,
                                  const AttentionOptions& options, const TensorView& out) {
  const size_t heads = q.dim(1);
  const uint32_t heads_per_kv = static_cast<uint32_t>(heads / pages.kv_heads);
  const uint32_t tokens_per_task = std::max(1u, kQueriesMax / heads_per_kv);
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
                         .options = options});
      }
    }
  }
  return tasks;
}

uint32_t TilesOf(const AttentionTask& task) { return task.EndTile() - task.FirstTile(); }

AttentionTask WithScratch(KernelContext& context, uint32_t thread, const AttentionTask& task) {
  AttentionTask own = task;
  own.scratch =
      context.Scratch(thread, AttentionScratchFloats(task.QueryCount(), task.pages.head_dim));
  return own;
}

// Whether so few tasks had better be cut along the cache.
bool ShouldSplit(const std::vector<AttentionTask>& tasks, uint32_t threads) {
  if (threads == 1 || tasks.size() >= 4 * threads) return false;
  return std::all_of(tasks.begin(), tasks.end(), [](const AttentionTask& task) {
    return task.QueryCount() <= kSplitQueriesMax && TilesOf(task) >= 2 * kPartTilesMin;
  });
}

void RunSplit(KernelContext& context, const std::vector<AttentionTask>& tasks) {
  struct Part {
    const AttentionTask* task = nullptr;
    uint32_t tile_begin = 0;
    uint32_t tile_end = 0;
    float* out = nullptr;
  };
  std::vector<size_t> offsets = {0};
  for (const AttentionTask& task : tasks) {
    offsets.push_back(offsets.back() + size_t{TilesOf(task)} * task.QueryCount() *
                                           AttentionPartFloats(task.pages.head_dim));
  }
  float* const shared = context.SharedScratch(offsets.back());
  const uint32_t wanted = 4 * context.threads().count() / static_cast<uint32_t>(tasks.size()) + 1;
  std::vector<Part> parts;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const uint32_t end = tasks[i].EndTile();
    const uint32_t step = std::max(kPartTilesMin, (TilesOf(tasks[i]) + wanted - 1) / wanted);
    for (uint32_t tile = tasks[i].FirstTile(); tile < end; tile += step) {
      parts.push_back({.task = &tasks[i],
                       .tile_begin = tile,
                       .tile_end = std::min(end, tile + step),
                       .out = shared + offsets[i]});
    }
  }
  context.threads().ParallelFor(
      static_cast<uint32_t>(parts.size()), [&](uint32_t index, uint32_t thread) {
        const Part& part = parts[index];
        context.cpu_ops().attention_part(WithScratch(context, thread, *part.task), part.tile_begin,
                                         part.tile_end, part.out);
      });
  context.threads().ParallelFor(static_cast<uint32_t>(tasks.size()), [&](uint32_t index,
                                                                         uint32_t thread) {
    const AttentionTask& task = tasks[index];
    context.cpu_ops().attention_merge(WithScratch(context, thread, task), shared + offsets[index]);
  });
}

}  // namespace

void AttentionCpu(KernelContext& context, const ConstTensorView& q, const KvPages& pages,
                  const PlacedSequences& sequences, const AttentionOptions& options,
                  const TensorView& out) {
  const std::vector<AttentionTask> tasks = Divide(q, pages, sequences.host, options, out);
  if (ShouldSplit(tasks, context.threads().count())) {
    RunSplit(context, tasks);
    return;
  }
  context.threads().ParallelFor(
      static_cast<uint32_t>(tasks.size()), [&](uint32_t index, uint32_t thread) {
        context.cpu_ops().attention(WithScratch(context, thread, tasks[index]));
      });
}

}  // namespace baton
