// The inner loops of the CPU kernels, compiled once per instruction set from the same text (*.inc).
//
// Each writes one part of one kernel's output, in one thread. All instruction sets give the same
// bits: a sum over k runs in ascending order with one fused multiply-add per element, in lanes that
// stand for different outputs; integer sums are exact; what is left of floating point is written
// down operation by operation.
#ifndef BATON_COMMON_KERNELS_CPU_CPU_OPS_H_
#define BATON_COMMON_KERNELS_CPU_CPU_OPS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/base/ids.h"
#include "common/kernels/kernels.h"

namespace baton {

// Weights are packed in panels of so many columns (outputs), see cpu_packing.h.
constexpr size_t kPanelColumns = 32;
// Sums of products with float weights begin anew at multiples of so many elements of k; these parts
// are added in ascending order.
constexpr size_t kSumBlock = 512;
// Stored weights are unsigned: the quantized number plus this.
constexpr int32_t kInt8Offset = 128;
constexpr int32_t kInt4Offset = 8;
// Elements of k that share one scale in each column, and the bytes of a panel's group.
constexpr size_t kInt4Group = 32;
constexpr size_t kInt4GroupBytes = kPanelColumns * (kInt4Group / 2 + sizeof(uint16_t));

// Rows of x are packed in tiles of twelve rows, and what is left in tiles of 8, 4, 2 and 1.
constexpr size_t kTileRowsMax = 12;
constexpr size_t TileRows(size_t rows_left) {
  for (size_t rows : {kTileRowsMax, size_t{8}, size_t{4}, size_t{2}}) {
    if (rows_left >= rows) return rows;
  }
  return 1;
}

// out[r][c] = sum over k of x[r][k] * weight[c][k], for some rows and the columns of some panels.
struct LinearTask {
  const std::byte* panels = nullptr;  // Of the type that the function is named for.
  size_t panel_bytes = 0;             // From a panel to the next.
  size_t panel_count = 0;             // At most kTaskPanelsMax.
  size_t k = 0;                       // A multiple of 2 (pairs), 4 (int8) or kInt4Group (int4).
  size_t rows = 0;                    // Of x.
  // [rows][out_stride]: of each row, all columns of the panels are written.
  float* out = nullptr;
  size_t out_stride = 0;
  // Where the last panel's columns go instead, if not null: [rows][kPanelColumns].
  float* last_out = nullptr;

  // For float weights. x is packed: [tile][k][rows of the tile].
  const float* x = nullptr;
  float* scratch = nullptr;  // kLinearScratchFloats floats.

  // For pairs of bfloat16. x is packed: [tile][k / 2][rows of the tile], of CpuOps::pair_bytes
  // each.
  const std::byte* x_pairs = nullptr;

  // For integer weights. x is quantized, with one or two bytes per element: the first byte times
  // 256 plus the second, a row of the first bytes before a row of the second ones. These byte rows
  // are packed: [tile][k / 4][byte rows of the tile][4].
  const int8_t* x_bytes = nullptr;
  size_t x_byte_count = 1;
  const float* x_scales = nullptr;  // [rows]
  // Of the bytes, for int8 weights [byte rows], for int4 weights [tile][group][rows of the tile].
  const int32_t* x_sums = nullptr;
  const float* scales = nullptr;  // [columns], for int8 and fp8 weights.

  float* PanelOut(size_t panel) const {
    return panel + 1 == panel_count && last_out != nullptr ? last_out : out + panel * kPanelColumns;
  }
  size_t PanelStride(size_t panel) const {
    return panel + 1 == panel_count && last_out != nullptr ? kPanelColumns : out_stride;
  }
};
constexpr size_t kTaskPanelsMax = 4;
// Of widened weights.
constexpr size_t kLinearScratchFloats = kTaskPanelsMax * kSumBlock * kPanelColumns;

// Attention of `count` consecutive tokens of a sequence for the query heads of one KV head.
struct AttentionTask {
  const float* q = nullptr;  // Of the first token and first head; [count][heads_per_kv][head_dim]
  float* out = nullptr;      // with `row_stride` floats from token to token. As q.
  size_t row_stride = 0;
  KvPages pages;
  std::span<const BlockId> blocks;
  uint32_t position = 0;  // Absolute, of the first token.
  uint32_t count = 0;
  uint32_t kv_head = 0;
  uint32_t heads_per_kv = 0;
  AttentionOptions options;
  float* scratch = nullptr;  // AttentionScratchFloats(count * heads_per_kv, head_dim) floats.

  uint32_t QueryCount() const { return count * heads_per_kv; }
  // Tiles of keys that any query sees: [FirstTile(), EndTile()).
  uint32_t FirstTile() const { return WindowBegin(position, options.window) / kAttentionTile; }
  uint32_t EndTile() const { return (position + count + kAttentionTile - 1) / kAttentionTile; }
};
constexpr size_t PaddedHeadDim(size_t head_dim) {
  return (head_dim + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}
// A tile of K and of V with their scales, the outputs of a tile of queries; per query itself, its
// scores, running output, maximum and sum.
constexpr size_t AttentionScratchFloats(size_t queries, size_t head_dim) {
  const size_t padded = PaddedHeadDim(head_dim);
  return 2 * kAttentionTile * (padded + 1) + kTileRowsMax * padded +
         queries * (kAttentionTile + padded + head_dim + 2);
}
// What one tile gives for one query: the output, the maximum and the sum; whole cache lines.
constexpr size_t AttentionPartFloats(size_t head_dim) { return PaddedHeadDim(head_dim) + 16; }

struct CpuOps {
  void (*linear_f32)(const LinearTask& task);
  void (*linear_bf16)(const LinearTask& task);
  void (*linear_f16)(const LinearTask& task);
  void (*linear_fp8)(const LinearTask& task);
  void (*linear_pairs)(const LinearTask& task);
  void (*linear_int8)(const LinearTask& task);
  void (*linear_int4)(const LinearTask& task);
  // Packs a tile of `count` rows of x for linear_pairs, k filled up with a zero to an even number.
  // `scratch` has room for k + 1 floats.
  void (*pack_pairs)(const float* x, size_t k, size_t count, float* scratch, std::byte* packed);
  size_t pair_bytes;  // Of a packed pair.
  // One row of k floats to one or two rows of bytes; both padded with zeros to `padded`. Returns
  // the scale: not a number if the row has one that is not finite.
  float (*quantize)(const float* x, size_t k, size_t padded, size_t byte_count, int8_t* bytes);
  // One row of k floats, at most 448 after division by the scale, to E4M3. Returns as `quantize`.
  float (*quantize_fp8)(const float* x, size_t k, uint8_t* bytes);
  void (*attention)(const AttentionTask& task);
  // The same in two steps: tiles of keys [tile_begin, tile_end) to `parts`
  // [tile - FirstTile()][queries][AttentionPartFloats()], and all of them to the output.
  void (*attention_part)(const AttentionTask& task, uint32_t tile_begin, uint32_t tile_end,
                         float* parts);
  void (*attention_merge)(const AttentionTask& task, const float* parts);
  // One row of n.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, size_t n, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon,
                     size_t n, float* out);
  // n elements each.
  void (*silu_mul)(const float* gate, const float* up, size_t n, float* out);
  void (*gelu)(const float* x, size_t n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, size_t n, float* out);
  void (*add)(const float* y, size_t n, float* x);
  void (*add_scaled)(const float* y, float factor, size_t n, float* x);  // x = y * factor + x.
  // x = cap * tanh(x / cap).
  void (*soft_cap)(float cap, size_t n, float* x);
  void (*exp)(const float* x, size_t n, float* out);   // For tests: the exp that attention uses.
  void (*tanh)(const float* x, size_t n, float* out);  // The same.
};

extern const CpuOps kCpuOpsBaseline;
#if defined(__x86_64__)
extern const CpuOps kCpuOpsAvx2;
extern const CpuOps kCpuOpsAvx512;
// Puts the processor's own products of pairs in place of those of AVX-512.
void UseNativePairs(CpuOps* ops);
#endif

// Null if this CPU, or this build, has not the instruction set.
const CpuOps* FindCpuOps(CpuIsa isa);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_CPU_CPU_OPS_H_
