// The whole list of operations that a model is made of: free functions over tensor views.
//
// Each forwards to the implementation for the context's device. Activations are of the context's
// type, which on the CPU is float32; the residual stream, logits, and weights and biases of norms
// are float32; matrices are packed, see packed_weight.h. On the CPU every output element is
// computed by a fixed sequence of operations that depends on nothing but its own inputs: not on the
// number of rows, on the other rows, on threads or on the CPU. See "Equal bits" in DESIGN_NOTES.md.
// A GPU promises that only up to rounding.
//
// Wrong shapes are programmer errors and stop the process. One thread at a time uses a context.
// Outputs come last and must not overlap inputs unless it is said. On a GPU operations are put into
// a queue; what fails there shows in the status of the step.
#ifndef BATON_COMMON_KERNELS_KERNELS_H_
#define BATON_COMMON_KERNELS_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/device/device.h"
#include "common/kernels/kernel_threads.h"
#include "common/kernels/packed_weight.h"
#include "common/kernels/sample_row.h"
#include "common/tensor/kv_row.h"
#include "common/tensor/tensor_view.h"

namespace baton {

// Instruction sets that the CPU kernels are compiled for. All give the same bits.
enum class CpuIsa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// The fastest that this CPU has.
CpuIsa BestCpuIsa();
const char* CpuIsaName(CpuIsa isa);

struct KernelOptions {
  Device* device = nullptr;  // Null: the CPU. Outlives the context.
  uint32_t threads = 1;      // The caller included.
  CpuIsa cpu_isa = BestCpuIsa();
  bool pin_threads = false;  // See KernelThreads.
  // Of what operations hand to each other. The CPU has kF32 only.
  DType activations = DType::kF32;
  // Memory of a GPU for what single operations need, until Reserve says how much that is.
  size_t scratch_bytes = size_t{64} << 20;
};

struct KernelTable;
struct CpuOps;
struct SequenceRows;
struct StepBounds;

// Numbers that the host knows and an operation needs.
template <typename T>
struct Placed {
  Placed() = default;
  Placed(std::span<const T> numbers) : host(numbers) {}     // NOLINT(google-explicit-constructor)
  Placed(const std::vector<T>& numbers) : host(numbers) {}  // NOLINT(google-explicit-constructor)
  Placed(std::span<const T> numbers, const T* where) : host(numbers), device(where) {}

  std::span<const T> host;
  // Where KernelContext::Place has brought them. Null: the operation brings them itself.
  const T* device = nullptr;
};

// In place of an id: the token that this row of the last StartSampling chooses, see StartedTokens.
// Of a device that samples tokens only.
constexpr TokenId ChosenBy(uint32_t row) { return -1 - static_cast<TokenId>(row); }

// The sequences of a batch.
struct PlacedSequences {
  PlacedSequences() = default;
  PlacedSequences(std::span<const SequenceRows> sequences);  // NOLINT(google-explicit-constructor)

  std::span<const SequenceRows> host;
  // As Placed::device, in a form that only the implementation knows.
  std::shared_ptr<const void> device = nullptr;
};

// What is the same in steps that may be replayed as one: see KernelContext::RunStep.
struct StepShape {
  uint32_t rows = 0;
  uint32_t end_max = 0;         // No sequence ends behind it.
  const void* cache = nullptr;  // The KV arena,
  uint64_t layout = 0;          // and the fingerprint of its layout.

  friend bool operator==(const StepShape&, const StepShape&) = default;
};

// What a device that works behind a queue keeps between operations. Its methods are those of
// KernelContext.
class KernelState {
 public:
  virtual ~KernelState() = default;
  virtual absl::Status Reserve(const StepBounds& bounds) = 0;
  virtual void BeginStep() = 0;
  // Copies to memory of the device, at the same address in all steps of one shape.
  virtual const void* Place(const void* numbers, size_t bytes) = 0;
  virtual std::shared_ptr<const void> Place(std::span<const SequenceRows> sequences,
                                            uint32_t end_max) = 0;
  virtual absl::Status RunStep(const StepShape* shape, absl::FunctionRef<absl::Status()> body) = 0;
  virtual void WhenDone(std::function<void()> done) = 0;
  virtual uint32_t PaddedRows(uint32_t rows) const = 0;
  virtual absl::Status Finish() = 0;
  virtual absl::Status Health() const = 0;
  virtual uint64_t replays() const = 0;
};

// What every operation needs: the device's implementation, threads and scratch memory.
class KernelContext {
 public:
  // kUnimplemented: no kernels for the device. kInvalidArgument: threads, or a CPU without that
  // ISA.
  static absl::StatusOr<std::unique_ptr<KernelContext>> Create(const KernelOptions& options);

  DeviceKind device() const {
    return options_.device == nullptr ? DeviceKind::kCpu : options_.device->kind();
  }
  // Of what operations hand to each other.
  DType activations() const { return options_.activations; }
  // Version of the numerics, e.g. "cpu-1". Raised when any kernel's bits change.
  const char* numerics() const;

  // Sets aside what steps within these bounds need, so that none has to ask for memory while others
  // have taken it. After all weights are packed. kResourceExhausted: there is not so much.
  absl::Status Reserve(const StepBounds& bounds);

  // A step begins: what was placed before is gone. Then what the step needs to know is placed, so
  // that all operations find it, and then it runs. On the CPU nothing has to be brought anywhere.
  void BeginStep();
  Placed<TokenId> Place(std::span<const TokenId> ids);
  Placed<uint32_t> Place(std::span<const uint32_t> rows);
  Placed<SampleRow> Place(std::span<const SampleRow> samples);
  Placed<LogitEdit> Place(std::span<const LogitEdit> edits);
  // `end_max` as in StepShape; 0: as the sequences are. Borrows them.
  PlacedSequences Place(std::span<const SequenceRows> sequences, uint32_t end_max = 0);
  // Calls the operations of a step. With a shape they are always the same ones, with the same
  // tensors, for all steps of that shape; only numbers that were placed differ. Then a GPU records
  // them once and replays them, without calling `body`. OK does not mean that a GPU has finished;
  // after an error it has.
  absl::Status RunStep(const StepShape* shape, absl::FunctionRef<absl::Status()> body);
  // Calls `done` when all operations before it have finished: on a GPU at the end of the step's
  // RunStep, which then waits. Not within a step that has a shape.
  void WhenDone(std::function<void()> done);
  // Rows that a decode step is filled up to, with sequences of no tokens, so that few shapes occur.
  uint32_t PaddedRows(uint32_t rows) const;
  // Waits until the device has finished all operations.
  absl::Status Finish();
  // kUnavailable: the device will compute nothing more in this process.
  absl::Status Health() const;
  // Steps that were replayed so far.
  uint64_t replays() const { return state_ == nullptr ? 0 : state_->replays(); }

  // For implementations only.
  const KernelTable& table() const { return *table_; }
  KernelState* state() { return state_.get(); }
  const CpuOps& cpu_ops() const { return *cpu_ops_; }
  KernelThreads& threads() { return threads_; }
  // Scratch of thread `thread`, at least `floats` long, 64-byte aligned; kept for the next kernel.
  float* Scratch(uint32_t thread, size_t floats) { return Grow(&scratch_[thread], floats); }
  // The same for all threads together. The caller of ParallelFor asks for it.
  float* SharedScratch(size_t floats) { return Grow(&shared_scratch_, floats); }

 private:
  struct FreeDeleter {
    void operator()(float* data) const;
  };
  struct ScratchMemory {
    std::unique_ptr<float[], FreeDeleter> data;
    size_t floats = 0;
  };

  KernelContext(const KernelOptions& options, const KernelTable* table, const CpuOps* cpu_ops,
                std::unique_ptr<KernelState> state);
  static float* Grow(ScratchMemory* scratch, size_t floats);

  const KernelOptions options_;
  const KernelTable* const table_;
  const CpuOps* const cpu_ops_;               // Null unless the device is the CPU.
  const std::unique_ptr<KernelState> state_;  // Null on the CPU.
  KernelThreads threads_;
  std::vector<ScratchMemory> scratch_;  // By thread.
  ScratchMemory shared_scratch_;
};

// One layer of a paged KV cache. A block holds [K|V][kv_head][block_tokens] rows for the layer. A
// row is head_dim numbers, and for those of 8 bits the float32 scale that they are multiplied with.
struct KvPages {
  std::byte* data = nullptr;  // Block 0 of the layer, in device memory.
  size_t block_bytes = 0;     // From a block to the next.
  DType dtype = DType::kF32;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t block_tokens = 0;

  // Offset of K (value = false) or V of the token at `position`, from `data`.
  size_t OffsetOf(std::span<const BlockId> blocks, bool value, uint32_t kv_head,
                  uint32_t position) const {
    const size_t row_bytes = KvRowBytes(dtype, head_dim);
    return Raw(blocks[position / block_tokens]) * block_bytes +
           (static_cast<size_t>((value ? kv_heads : 0) + kv_head) * block_tokens +
            position % block_tokens) *
               row_bytes;
  }
};

// What steps have at most.
struct StepBounds {
  uint32_t tokens = 0;
  uint32_t sequences = 0;
  uint32_t sequence_tokens = 0;  // Of a sequence, those in the cache included.
  uint32_t heads = 0;
  KvPages pages;
  uint32_t logit_rows = 0;  // From which tokens are chosen at once.
  uint32_t vocab_size = 0;
};

// Consecutive tokens of one sequence within a batch.
struct SequenceRows {
  uint32_t row = 0;  // Of the first token, in the batch.
  uint32_t count = 0;
  uint32_t position = 0;  // Absolute, of the first token.
  // Host memory; cover positions [0, position + count). Those that no row sees are not looked at.
  std::span<const BlockId> blocks;
};

inline PlacedSequences::PlacedSequences(std::span<const SequenceRows> sequences)
    : host(sequences) {}

inline constexpr uint32_t kHeadDimMax = 1024;

// out[i] = table[ids[i]]. table [vocab, n] of a weight type; out [ids, n], float32.
// REQUIRES: 0 <= id < vocab, or ChosenBy.
void Embedding(KernelContext& context, const ConstTensorView& table, const Placed<TokenId>& ids,
               const TensorView& out);

// Root mean square layer normalization (Zhang and Sennrich, 2019) of each row:
// out = weight * (x / sqrt(mean(x^2) + epsilon)). x, out [rows, n], float32 or activations; weight
// [n]. `out` may be `x`.
void RmsNorm(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
             float epsilon, const TensorView& out);

// x += y, and then out = RmsNorm(x). x [rows, n], float32; y, out [rows, n]. `out` may be `y`.
void AddRmsNorm(KernelContext& context, const ConstTensorView& y, const TensorView& x,
                const ConstTensorView& weight, float epsilon, const TensorView& out);

// Layer normalization (Ba et al., 2016) of each row, with the variance over n elements:
// out = weight * ((x - mean(x)) / sqrt(variance(x) + epsilon)) + bias. x [rows, n], float32; out
// [rows, n]; weight, bias [n]. `out` may be `x`.
void LayerNorm(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
               const ConstTensorView& bias, float epsilon, const TensorView& out);

// Brings a matrix [outputs, inputs] into the form and order that Linear wants. `matrix` is float32,
// bfloat16 or float16 in host memory, of any alignment. kInvalidArgument: "has 1e+09, which does
// not fit into f16". kResourceExhausted: no memory.
absl::StatusOr<PackedWeight> PackWeight(KernelContext& context, Device& device,
                                        const ConstTensorView& matrix, WeightFormat format);

// out = x weight^T + bias, for several weights of one x. x [m, inputs]; out [m, outputs],
// activations or float32; bias [outputs] of the type of out, or empty.
struct LinearOutput {
  const PackedWeight* weight = nullptr;
  ConstTensorView bias;
  TensorView out;
};
void Linear(KernelContext& context, const ConstTensorView& x,
            std::span<const LinearOutput> outputs);

// The same with other weights for other rows of x, all at once: the rows [row, row + rows) of x go
// to `outputs`, whose out is [rows, outputs]. x [m, inputs]; groups do not overlap and ascend; rows
// of no group are left out.
struct LinearGroup {
  size_t row = 0;
  size_t rows = 0;
  std::span<const LinearOutput> outputs;
};
void GroupedLinear(KernelContext& context, const ConstTensorView& x,
                   std::span<const LinearGroup> groups);

// The angles of rotary position embeddings for each row: position * frequency, rounded to float32.
// frequencies [half], float32; cosines, sines [rows, half], float32,
// multiplied by `factor`.
void RotaryAngles(KernelContext& context, const PlacedSequences& sequences,
                  const ConstTensorView& frequencies, float factor, const TensorView& cosines,
                  const TensorView& sines);

// Rotates the first `dim` elements of each head by its token's angles, in Hugging Face's layout:
// element i is paired with element i + dim / 2. x [rows, heads, head_dim], in place; cosines, sines
// [rows, dim / 2]. REQUIRES: dim <= head_dim.
void Rope(KernelContext& context, const ConstTensorView& cosines, const ConstTensorView& sines,
          const TensorView& x);

// Rounds K and V to the cache's type and writes them. k, v [rows, kv_heads, head_dim].
void WriteKv(KernelContext& context, const ConstTensorView& k, const ConstTensorView& v,
             const PlacedSequences& sequences, const KvPages& pages);

// Rope of q and of k, and then WriteKv. What k holds afterwards is not said.
void RopeWriteKv(KernelContext& context, const ConstTensorView& cosines,
                 const ConstTensorView& sines, const TensorView& q, const TensorView& k,
                 const ConstTensorView& v, const PlacedSequences& sequences, const KvPages& pages);

// How one layer's attention weighs what a token sees.
struct AttentionOptions {
  float scale = 1.0f;  // Of the products of q and K.
  // Sliding window (Beltagy et al., Longformer, 2020; Jiang et al., Mistral 7B, 2023): how many
  // tokens a token sees at most, itself included. 0: all before it.
  uint32_t window = 0;
  // Scores become soft_cap * tanh(score / soft_cap) (Gemma Team, Gemma 2, 2024). 0: they stay.
  float soft_cap = 0.0f;
};

// First position that the token at `position` sees.
constexpr uint32_t WindowBegin(uint32_t position, uint32_t window) {
  return window == 0 || position < window ? 0 : position - window + 1;
}

// Causal grouped-query attention over the cache, which already holds K and V of every row: the
// token at position p sees [WindowBegin(p), p]; what is before the window of every row is not read.
// Query head h reads KV head h / (heads / kv_heads). Positions are taken in tiles aligned at
// multiples of kAttentionTile; each gives its own maximum, sum and output, and they are merged in
// ascending order (Dao et al., FlashAttention, 2022), in prefill and decode alike.
// q, out [rows, heads, head_dim].
inline constexpr uint32_t kAttentionTile = 64;
void Attention(KernelContext& context, const ConstTensorView& q, const KvPages& pages,
               const PlacedSequences& sequences, const AttentionOptions& options,
               const TensorView& out);

// out = silu(gate) * up, silu(x) = x / (1 + e^-x). All of equal shape. `out` may be `gate`.
void SiluMul(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
             const TensorView& out);

// gelu(x) in its tanh form (Hendrycks and Gimpel, 2016): 0.5 x (1 + tanh u), where u = sqrt(2 / pi)
// (x + 0.044715 x^3); computed as x / (1 + e^-2u), which is the same and loses nothing where tanh u
// is near -1. Shapes are equal.
// out = gelu(x). x, out [rows, n]. `out` may be `x`.
void Gelu(KernelContext& context, const ConstTensorView& x, const TensorView& out);
// out = gelu(gate) * up. gate, up, out [rows, n]. `out` may be `gate`.
void GeluMul(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
             const TensorView& out);

// x = cap * tanh(x / cap), in place. x [rows, n], float32. REQUIRES: cap > 0.
void SoftCap(KernelContext& context, float cap, const TensorView& x);

// x *= factor, in place. x [rows, n], float32.
void Scale(KernelContext& context, float factor, const TensorView& x);

// x += y, of equal shape. x float32.
void Add(KernelContext& context, const ConstTensorView& y, const TensorView& x);

// out[i] = x[rows[i]]. x [any, n]; out [rows, n], of the same type.
void GatherRows(KernelContext& context, const ConstTensorView& x, const Placed<uint32_t>& rows,
                const TensorView& out);

// out = the parts side by side. parts [rows, any]; out [rows, the sum of theirs]; float32.
void JoinColumns(KernelContext& context, std::span<const ConstTensorView> parts,
                 const TensorView& out);

// out[i] = sum over j, ascending, of weights[i][j] * x[rows[i][j]], each a fused multiply-add.
// x [any, n]; rows, weights [tokens, terms], in host memory; out [tokens, n].
void CombineRows(KernelContext& context, const ConstTensorView& x, std::span<const uint32_t> rows,
                 std::span<const float> weights, const TensorView& out);

// Which experts a token goes to in a mixture of experts (Shazeer et al., 2017; in the order of
// Mixtral, Jiang et al., 2024): of the softmax over its logits the `per_token` highest; of equal
// ones the first. logits [tokens, experts], float32. experts, weights [tokens, per_token], in host
// memory, in ascending order of the expert: its number and its probability, which is divided by the
// sum of those chosen if `normalize`. REQUIRES: 0 < per_token <= experts. Numbers that are not
// finite choose something, with weights that are not finite.
void RouteExperts(KernelContext& context, const ConstTensorView& logits, uint32_t per_token,
                  bool normalize, std::span<uint32_t> experts, std::span<float> weights);

// ---- Mixtures whose tokens the device itself sends to experts ----
// For steps of few tokens: nothing comes to the host between the router and the sum.

// Weights of all experts, [experts, products of each], of one shape.
using ExpertProducts = std::span<const PackedWeight* const>;

// What the operations below tell each other, in device memory. Of one layer at a time.
struct Routing {
  size_t tokens = 0;
  size_t experts = 0;
  size_t per_token = 0;
  size_t terms = 0;  // Of a token's sum: per_token, or one more for an expert of all tokens.
  std::byte* tables = nullptr;  // RoutingBytes(*this), of the device.

  constexpr size_t rows() const { return tokens * per_token; }  // Of all experts.
};
// Three numbers of each expert that has rows, one of each row, two of each term.
constexpr size_t RoutingBytes(const Routing& routing) {
  const size_t groups = routing.experts < routing.rows() ? routing.experts : routing.rows();
  return sizeof(uint32_t) * (3 * groups + routing.rows() + 2 * routing.tokens * routing.terms);
}

// Whether the device can, with weights like this one.
bool CanRoute(const KernelContext& context, const Routing& routing, const PackedWeight& weight);
// As RouteExperts, of equal logits instead of equal probabilities the first, and the order of rows:
// ascending by expert, of one by token. logits [tokens, experts], float32; shared_logits [tokens,
// 1], float32, or empty: the factor of the expert of all tokens is their sigmoid, and its rows lie
// behind the others. Tokens of no sequence go to no expert: what comes out for them is undefined.
void Route(KernelContext& context, const ConstTensorView& logits,
           const ConstTensorView& shared_logits, const PlacedSequences& sequences, bool normalize,
           const Routing& routing);
// out[i] = x times the i-th weight of each row's expert. weights [experts, out.size()], of one
// shape [outputs, inputs], which stay where they are while the context lives. x [tokens, inputs],
// or [rows, inputs] if not `by_token`; out [rows, outputs].
void RoutedLinear(KernelContext& context, const ConstTensorView& x, bool by_token,
                  ExpertProducts weights, const Routing& routing, std::span<const TensorView> out);
// CombineRows with the rows and factors of the routing. x [any, n]; out [tokens, n].
void CombineRouted(KernelContext& context, const ConstTensorView& x, const Routing& routing,
                   const TensorView& out);

// Whether the device chooses from so many tokens itself. The CPU does not: there Sample() of
// common/sampling reads the logits where they are.
bool CanSampleTokens(const KernelContext& context, size_t vocab);
// The token that Sample() would choose from each row of logits, bit for bit. logits [rows, vocab],
// float32, are overwritten; the others are host memory: samples and tokens [rows], edits as samples
// say. Waits for the result. REQUIRES: CanSampleTokens.
absl::Status SampleTokens(KernelContext& context, const TensorView& logits,
                          std::span<const SampleRow> samples, std::span<const LogitEdit> edits,
                          std::span<TokenId> tokens);
// The same in parts, at most kStartedRowsMax rows: the device does the first two when it comes to
// them, and the last waits for that. At most two are started and not finished; the oldest comes
// first.
constexpr uint32_t kStartedRowsMax = 256;
absl::Status StartSampling(KernelContext& context, const TensorView& logits,
                           const Placed<SampleRow>& samples, const Placed<LogitEdit>& edits);
// Where it puts the tokens, and where ChosenBy finds them: so that a device can have those which
// another one has chosen. [rows]; int32, whose bits a TensorView knows as float32.
TensorView StartedTokens(KernelContext& context, size_t rows);
// Sends those on to the host.
absl::Status BringTokens(KernelContext& context, size_t rows);
absl::Status FinishSampling(KernelContext& context, std::span<TokenId> tokens);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_KERNELS_H_
