// The CUDA kernels as functions that put one operation on a stream: plain pointers into device
// memory, sizes and a stream. Shapes were checked by kernels.h; what is said there of an operation
// holds here.
//
// Every function returns at once with what CUDA says of the launch; errors of the kernel itself
// show at the next synchronization. Nothing is allocated and nothing waits, so every function may
// be recorded into a graph: the launch depends on the host values given here, the work on what
// lies in device memory when it runs.
#ifndef BATON_COMMON_KERNELS_CUDA_LAUNCH_H_
#define BATON_COMMON_KERNELS_CUDA_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/kernels/sample_row.h"
#include "common/tensor/dtype.h"

namespace baton::cuda {

// SequenceRows in device memory.
struct DeviceSequence {
  uint32_t row = 0;       // Of the first token, in the batch.
  uint32_t count = 0;     // 0: a place that is not taken; nothing is read or written for it.
  uint32_t position = 0;  // Absolute, of the first token.
  uint32_t blocks = 0;    // Where its blocks begin in `block_table`: of positions [0, end).
};

constexpr uint32_t kNoSequence = ~0u;

// The sequences of a batch. The pointers are device memory.
struct SequenceTable {
  const DeviceSequence* sequences = nullptr;  // [count]
  const uint32_t* block_table = nullptr;      // Block ids of all sequences.
  const uint32_t* row_sequence = nullptr;     // [rows]: the sequence of each row of the batch;
                                              // kNoSequence: of none.
  uint32_t count = 0;
  uint32_t rows = 0;
  uint32_t count_max = 0;  // The longest `count` of a sequence. 1: a decode step.
  // The end of the longest sequence; for a recorded step the highest that it may be replayed with.
  uint32_t end_max = 0;
  // Where the blocks of these sequences lie in block_table.
  uint32_t blocks_begin = 0;
  uint32_t blocks_end = 0;
};

// KvPages in device memory.
struct DevicePages {
  std::byte* data = nullptr;
  size_t block_bytes = 0;
  DType dtype = DType::kF32;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t block_tokens = 0;
};

// What every launch gets.
struct Launch {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  int compute_capability = 0;  // 80, 90, 100.
};

// Whether the kernels were compiled for the current GPU.
cudaError_t FindCode();

// ---- rowwise.cu ------------------------------------------------------------------------------
// `type` is the type of activations: kF32, kF16 or kBF16. The residual stream x is float32.

// out[i] = float(table[ids[i]]), where an id below zero stands for chosen[-1 - id]. table [.., n]
// of type table_type.
cudaError_t Embedding(const Launch& launch, const void* table, DType table_type, const int32_t* ids,
                      const int32_t* chosen, uint32_t rows, uint32_t n, float* out);

// out = weight * (x / sqrt(mean(x^2) + epsilon)). x of x_type, out of out_type; `out` may be `x`.
cudaError_t RmsNorm(const Launch& launch, const void* x, DType x_type, const float* weight,
                    float epsilon, uint32_t rows, uint32_t n, void* out, DType out_type);
// x += y; out = the norm of x. y and out of type `type`; `out` may be `y`.
cudaError_t AddRmsNorm(const Launch& launch, const void* y, DType type, float* x,
                       const float* weight, float epsilon, uint32_t rows, uint32_t n, void* out);
cudaError_t LayerNorm(const Launch& launch, const float* x, const float* weight, const float* bias,
                      float epsilon, uint32_t rows, uint32_t n, void* out, DType out_type);
// Angles of each row: position * frequency, as RopeAngles::Fill. cosines, sines [rows, half].
cudaError_t RotaryAngles(const Launch& launch, const SequenceTable& table, const float* frequencies,
                         float factor, uint32_t half, float* cosines, float* sines);
// Rotates in place. x [rows, heads, head_dim].
cudaError_t Rope(const Launch& launch, const float* cosines, const float* sines, uint32_t half,
                 uint32_t rows, uint32_t heads, uint32_t head_dim, void* x, DType type);
// Rope of q and k, and WriteKv of k and v, in one pass; k itself is left as it was.
// half 0: nothing is rotated. q [rows, heads, head_dim]; k, v [rows, kv_heads, head_dim].
cudaError_t RopeWriteKv(const Launch& launch, const float* cosines, const float* sines,
                        uint32_t half, uint32_t heads, void* q, const void* k, const void* v,
                        DType type, const SequenceTable& table, const DevicePages& pages);
cudaError_t WriteKv(const Launch& launch, const void* k, const void* v, DType type,
                    const SequenceTable& table, const DevicePages& pages);
// Elementwise, over `count` elements.
cudaError_t SiluMul(const Launch& launch, const void* gate, const void* up, size_t count, void* out,
                    DType type);
cudaError_t Gelu(const Launch& launch, const void* x, size_t count, void* out, DType type);
cudaError_t GeluMul(const Launch& launch, const void* gate, const void* up, size_t count, void* out,
                    DType type);
cudaError_t SoftCap(const Launch& launch, float cap, size_t count, float* x);
cudaError_t Scale(const Launch& launch, float factor, size_t count, float* x);
// x += y, y of y_type.
cudaError_t Add(const Launch& launch, const void* y, DType y_type, size_t count, float* x);
// The first n of each row of out [rows, stride] += bias [n], both of `type`.
cudaError_t AddBias(const Launch& launch, const void* bias, uint32_t rows, uint32_t n,
                    uint32_t stride, void* out, DType type);
// out[i] = x[rows[i]]; rows of `row_bytes`, a multiple of 4.
cudaError_t GatherRows(const Launch& launch, const void* x, const uint32_t* rows, uint32_t count,
                       size_t row_bytes, void* out);
// out[i] = sum over j of weights[i][j] * x[rows[i][j]].
cudaError_t CombineRows(const Launch& launch, const void* x, DType type, const uint32_t* rows,
                        const float* weights, uint32_t tokens, uint32_t terms, uint32_t n,
                        void* out);

// ---- skinny_linear.cu: x weight^T for few rows of x, at the speed of reading the weights -------

constexpr uint32_t kSkinnyOutputsMax = 4;
// One of several products of the same x.
struct SkinnyOutput {
  const void* weight = nullptr;   // [outputs, inputs], rows one after the other.
  const float* scales = nullptr;  // [outputs], factors of kI8's and kFp8's rows.
  const void* bias = nullptr;     // [outputs] of the type of out, or null.
  void* out = nullptr;            // [rows, outputs]
  uint32_t outputs = 0;
};
// Whether SkinnyLinear can: the weights' type, rows <= 64, and inputs that divide as it wants.
bool SkinnyLinearFits(DType x_type, DType weight_type, uint32_t rows, uint32_t inputs);
// x [rows, inputs] of x_type (kBF16 or kF16); weights of x_type, kI8 or kFp8; out of out_type:
// x_type or kF32. What an output element becomes does not depend on `rows`.
cudaError_t SkinnyLinear(const Launch& launch, const void* x, DType x_type, uint32_t rows,
                         uint32_t inputs, DType weight_type, const SkinnyOutput* outputs,
                         uint32_t output_count, DType out_type);
// Weights of kI8 or kFp8 with their scales as numbers of `out_type` (kBF16 or kF16), for large
// products.
cudaError_t Dequantize(const Launch& launch, const std::byte* weight, DType weight_type,
                       const float* scales, uint32_t outputs, uint32_t inputs, void* out,
                       DType out_type);

// ---- Mixtures of experts whose tokens the GPU itself sends to experts --------------------------

constexpr uint32_t kRoutedTokensMax = 64;
constexpr uint32_t kRoutedExpertsMax = 512;

struct RoutingShape {
  uint32_t tokens = 0;
  uint32_t experts = 0;
  uint32_t per_token = 0;
  uint32_t terms = 0;  // Of a token's sum: per_token, or one more for the expert of all tokens.
};

// An expert, and the rows of it.
struct RoutedGroup {
  uint32_t expert = 0;
  uint32_t row = 0;
  uint32_t rows = 0;
};

// In device memory.
struct RoutingTables {
  RoutedGroup* groups = nullptr;   // [RoutedGroupsMax]: ascending by expert; the last have no rows.
  uint32_t* row_tokens = nullptr;  // [tokens * per_token]: the token of each row.
  // Rows and factors of each token's sum, ascending by expert, as CombineRows takes them. Rows of
  // the expert of all tokens lie behind the others.
  uint32_t* term_rows = nullptr;  // [tokens, terms]
  float* term_weights = nullptr;  // As term_rows.
};

constexpr uint32_t RoutedGroupsMax(const RoutingShape& shape) {
  return shape.experts < shape.tokens * shape.per_token ? shape.experts
                                                        : shape.tokens * shape.per_token;
}

// mixture_routing.cu. logits [tokens, experts]; shared_logits [tokens], or null if terms is
// per_token. row_sequence [tokens]: rows of kNoSequence go to no expert, and their sums are of
// nothing. cudaErrorInvalidValue: more than the maxima above.
cudaError_t RouteTokens(const Launch& launch, const float* logits, const float* shared_logits,
                        const uint32_t* row_sequence, const RoutingShape& shape, bool normalize,
                        const RoutingTables& tables);

// Products of all experts with their rows: skinny_linear.cu.
struct RoutedProducts {
  RoutingShape shape;
  RoutingTables tables;
  bool by_token = false;  // x has rows of tokens; otherwise of all experts, one after the other.
  uint32_t inputs = 0;
  uint32_t outputs = 0;                   // Of each product.
  uint32_t each = 0;                      // Products of an expert, at most kSkinnyOutputsMax.
  const SkinnyOutput* experts = nullptr;  // [experts, each], in device memory; `out` is not used.
  void* out[kSkinnyOutputsMax] = {};      // [each]: [rows of all experts, outputs]
};
// x and out of x_type. cudaErrorInvalidValue: not SkinnyLinearFits.
cudaError_t RoutedLinear(const Launch& launch, const void* x, DType x_type, DType weight_type,
                         const RoutedProducts& products);

// ---- attention -------------------------------------------------------------------------------

struct AttentionArgs {
  const void* q = nullptr;   // [rows, heads, head_dim]
  void* out = nullptr;       // As q.
  DType type = DType::kF32;  // Of q and out: kF32, kF16 or kBF16.
  uint32_t heads = 0;
  DevicePages pages;
  SequenceTable table;
  float scale = 1.0f;
  uint32_t window = 0;
  float soft_cap = 0.0f;
  // At least DecodeAttentionScratchBytes; others need none.
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
};

// attention_any.cu: every type, head size, window and cap, on every GPU; exact in float32, slow.
// With a smaller table.count only the first so many sequences.
cudaError_t AttentionAny(const Launch& launch, const AttentionArgs& args);

// widen_pages.cu: copies what the sequences see to `scratch`, of WidePagesBytes, in the type of q,
// and makes `args` refer to it.
size_t WidePagesBytes(const AttentionArgs& args);
cudaError_t WidenPages(const Launch& launch, AttentionArgs* args, void* scratch);

// decode_attention.cu: flash decoding. Sequences of few rows (count_max * heads / kv_heads <= 16,
// or 8 if head_dim is 256), q of kBF16 or kF16, and KV of the same type, kI8 or kFp8; head_dim 64,
// 96, 128 or 256, blocks of a multiple of 16 tokens.
bool DecodeAttentionFits(const AttentionArgs& args);
size_t DecodeAttentionScratchBytes(const Launch& launch, const AttentionArgs& args);
cudaError_t DecodeAttention(const Launch& launch, const AttentionArgs& args);

// prefill_attention.cu: FlashAttention-2 on mma.sync, kBF16 or kF16 for both, head_dim 64, 96,
// 128 or 256.
bool PrefillAttentionFits(const AttentionArgs& args);
cudaError_t PrefillAttention(const Launch& launch, const AttentionArgs& args);

// prefill_attention_sm90.cu: the same on Hopper's warpgroup instructions and its copy engine.
bool PrefillAttentionSm90Fits(const Launch& launch, const AttentionArgs& args);
cudaError_t PrefillAttentionSm90(const Launch& launch, const AttentionArgs& args);

// ---- sampling.cu -----------------------------------------------------------------------------

using ::baton::LogitEdit;
using ::baton::SampleRow;

constexpr uint32_t kSampleVocabMax = 1u << 19;
// REQUIRES: vocab <= kSampleVocabMax.
size_t SampleScratchBytes(uint32_t rows, uint32_t vocab);
// tokens[i] = the token that Sample() would choose, bit for bit. logits [rows, vocab] is scratch:
// overwritten. samples, edits and tokens are device memory.
cudaError_t SampleTokens(const Launch& launch, float* logits, uint32_t rows, uint32_t vocab,
                         const SampleRow* samples, const LogitEdit* edits, void* scratch,
                         int32_t* tokens);

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_LAUNCH_H_
