// The GPU's kernels: from tensors to launches. What computes is in the .cu files.
#include "common/kernels/cuda/cuda_kernels.h"

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "common/kernels/cuda/cuda_linear.h"
#include "common/kernels/cuda/cuda_mixture.h"
#include "common/kernels/cuda/cuda_packing.h"
#include "common/kernels/cuda/cuda_state.h"
#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/step_memory.h"

namespace baton::cuda {
namespace {

CudaState& StateOf(KernelContext& context) { return static_cast<CudaState&>(*context.state()); }

uint32_t Size(size_t size) { return static_cast<uint32_t>(size); }

template <typename T>
const T* DeviceNumbers(KernelContext& context, const Placed<T>& placed) {
  if (placed.device != nullptr) return placed.device;
  return static_cast<const T*>(
      StateOf(context).Place(placed.host.data(), placed.host.size_bytes()));
}

DevicePages PagesOf(const KvPages& pages) {
  return {.data = pages.data,
          .block_bytes = pages.block_bytes,
          .dtype = pages.dtype,
          .kv_heads = pages.kv_heads,
          .head_dim = pages.head_dim,
          .block_tokens = pages.block_tokens};
}

void EmbeddingCuda(KernelContext& context, const ConstTensorView& table, const Placed<TokenId>& ids,
                   const TensorView& out) {
  static_assert(sizeof(TokenId) == sizeof(int32_t));
  const auto* numbers = reinterpret_cast<const int32_t*>(DeviceNumbers(context, ids));
  StateOf(context).Check(Embedding(StateOf(context).launch(), table.data(), table.dtype(), numbers,
                                   StateOf(context).started_tokens().data(), Size(ids.host.size()),
                                   Size(table.dim(1)), out.f32()),
                         "embedding");
}

void RmsNormCuda(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
                 float epsilon, const TensorView& out) {
  StateOf(context).Check(RmsNorm(StateOf(context).launch(), x.data(), x.dtype(), weight.f32(),
                                 epsilon, Size(x.dim(0)), Size(x.dim(1)), out.data(), out.dtype()),
                         "RMS norm");
}

void AddRmsNormCuda(KernelContext& context, const ConstTensorView& y, const TensorView& x,
                    const ConstTensorView& weight, float epsilon, const TensorView& out) {
  StateOf(context).Check(
      AddRmsNorm(StateOf(context).launch(), y.data(), y.dtype(), x.f32(), weight.f32(), epsilon,
                 Size(x.dim(0)), Size(x.dim(1)), out.data()),
      "RMS norm");
}

void LayerNormCuda(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
                   const ConstTensorView& bias, float epsilon, const TensorView& out) {
  StateOf(context).Check(
      LayerNorm(StateOf(context).launch(), x.f32(), weight.f32(), bias.f32(), epsilon,
                Size(x.dim(0)), Size(x.dim(1)), out.data(), out.dtype()),
      "layer norm");
}

void RotaryAnglesCuda(KernelContext& context, const PlacedSequences& sequences,
                      const ConstTensorView& frequencies, float factor, const TensorView& cosines,
                      const TensorView& sines) {
  StateOf(context).Check(
      RotaryAngles(StateOf(context).launch(), StateOf(context).TableOf(sequences)->all,
                   frequencies.f32(), factor, Size(frequencies.dim(0)), cosines.f32(), sines.f32()),
      "rotary angles");
}

void RopeCuda(KernelContext& context, const ConstTensorView& cosines, const ConstTensorView& sines,
              const TensorView& x) {
  StateOf(context).Check(
      Rope(StateOf(context).launch(), cosines.f32(), sines.f32(), Size(cosines.dim(1)),
           Size(x.dim(0)), Size(x.dim(1)), Size(x.dim(2)), x.data(), x.dtype()),
      "rotation");
}

void WriteKvCuda(KernelContext& context, const ConstTensorView& k, const ConstTensorView& v,
                 const PlacedSequences& sequences, const KvPages& pages) {
  StateOf(context).Check(WriteKv(StateOf(context).launch(), k.data(), v.data(), k.dtype(),
                                 StateOf(context).TableOf(sequences)->all, PagesOf(pages)),
                         "writing the KV cache");
}

void RopeWriteKvCuda(KernelContext& context, const ConstTensorView& cosines,
                     const ConstTensorView& sines, const TensorView& q, const TensorView& k,
                     const ConstTensorView& v, const PlacedSequences& sequences,
                     const KvPages& pages) {
  StateOf(context).Check(
      RopeWriteKv(StateOf(context).launch(), cosines.f32(), sines.f32(), Size(cosines.dim(1)),
                  Size(q.dim(1)), q.data(), k.data(), v.data(), q.dtype(),
                  StateOf(context).TableOf(sequences)->all, PagesOf(pages)),
      "writing the KV cache");
}

bool ChunksFit(const Launch& launch, const AttentionArgs& args) {
  return PrefillAttentionSm90Fits(launch, args) || PrefillAttentionFits(args);
}

void RunSingles(CudaState& state, AttentionArgs args) {
  args.scratch_bytes = DecodeAttentionScratchBytes(state.launch(), args);
  args.scratch = state.Scratch(args.scratch_bytes);
  if (args.scratch == nullptr && args.scratch_bytes > 0) return;
  state.Check(DecodeAttention(state.launch(), args), "attention of single tokens");
}

void RunChunks(CudaState& state, const AttentionArgs& args) {
  const Launch& launch = state.launch();
  state.Check(PrefillAttentionSm90Fits(launch, args) ? PrefillAttentionSm90(launch, args)
                                                     : PrefillAttention(launch, args),
              "attention of chunks");
}

// As many sequences at a time as have room when their KV is widened, and one at least.
void RunWidenedChunks(CudaState& state, const AttentionArgs& args,
                      std::span<const uint32_t> blocks) {
  for (uint32_t begin = 0; begin < args.table.count;) {
    AttentionArgs part = args;
    const auto take = [&](uint32_t count) {
      part.table.count = count;
      part.table.blocks_end = blocks[begin + count];
    };
    part.table.sequences += begin;
    part.table.blocks_begin = blocks[begin];
    take(1);
    while (begin + part.table.count < args.table.count) {
      take(part.table.count + 1);
      if (WidePagesBytes(part) <= state.scratch_bytes()) continue;
      take(part.table.count - 1);
      break;
    }
    begin += part.table.count;
    void* const scratch = state.Scratch(WidePagesBytes(part));
    if (scratch == nullptr) return;
    state.Check(WidenPages(state.launch(), &part, scratch), "widening the cache");
    RunChunks(state, part);
  }
}

// Sequences of one token are bound by memory, longer chunks by arithmetic: each has its kernel.
void AttentionCuda(KernelContext& context, const ConstTensorView& q, const KvPages& pages,
                   const PlacedSequences& sequences, const AttentionOptions& options,
                   const TensorView& out) {
  CudaState& state = StateOf(context);
  const std::shared_ptr<const PlacedTable> table = StateOf(context).TableOf(sequences);
  AttentionArgs args = {.q = q.data(),
                        .out = out.data(),
                        .type = q.dtype(),
                        .heads = Size(q.dim(1)),
                        .pages = PagesOf(pages),
                        .table = table->all,
                        .scale = options.scale,
                        .window = options.window,
                        .soft_cap = options.soft_cap};
  AttentionArgs singles = args;
  singles.table = table->singles;
  AttentionArgs chunks = args;
  chunks.table = table->chunks;
  AttentionArgs wide = chunks;
  wide.pages.dtype = args.type;
  if (chunks.table.count > 0 && !ChunksFit(state.launch(), wide)) {
    state.Check(AttentionAny(state.launch(), args), "attention");
    return;
  }
  if (singles.table.count > 0 && DecodeAttentionFits(singles)) {
    RunSingles(state, singles);
  } else if (singles.table.count > 0) {
    args.table.count = singles.table.count;  // They come first in it.
    state.Check(AttentionAny(state.launch(), args), "attention of single tokens");
  }
  if (chunks.table.count == 0) return;
  if (chunks.pages.dtype == chunks.type) {
    RunChunks(state, chunks);
  } else {
    RunWidenedChunks(state, chunks, table->chunk_blocks);
  }
}

void SiluMulCuda(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
                 const TensorView& out) {
  StateOf(context).Check(SiluMul(StateOf(context).launch(), gate.data(), up.data(), out.elements(),
                                 out.data(), out.dtype()),
                         "SiLU");
}

void GeluCuda(KernelContext& context, const ConstTensorView& x, const TensorView& out) {
  StateOf(context).Check(
      Gelu(StateOf(context).launch(), x.data(), out.elements(), out.data(), out.dtype()), "GELU");
}

void GeluMulCuda(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
                 const TensorView& out) {
  StateOf(context).Check(GeluMul(StateOf(context).launch(), gate.data(), up.data(), out.elements(),
                                 out.data(), out.dtype()),
                         "GELU");
}

void SoftCapCuda(KernelContext& context, float cap, const TensorView& x) {
  StateOf(context).Check(SoftCap(StateOf(context).launch(), cap, x.elements(), x.f32()),
                         "soft cap");
}

void ScaleCuda(KernelContext& context, float factor, const TensorView& x) {
  StateOf(context).Check(Scale(StateOf(context).launch(), factor, x.elements(), x.f32()), "scale");
}

void AddCuda(KernelContext& context, const ConstTensorView& y, const TensorView& x) {
  StateOf(context).Check(Add(StateOf(context).launch(), y.data(), y.dtype(), x.elements(), x.f32()),
                         "sum");
}

void GatherRowsCuda(KernelContext& context, const ConstTensorView& x, const Placed<uint32_t>& rows,
                    const TensorView& out) {
  const uint32_t* const numbers = DeviceNumbers(context, rows);
  if (!StateOf(context).ok()) return;
  StateOf(context).Check(
      GatherRows(StateOf(context).launch(), x.data(), numbers, Size(rows.host.size()),
                 x.dim(1) * DTypeBytes(x.dtype()), out.data()),
      "gathering rows");
}

void JoinColumnsCuda(KernelContext& context, std::span<const ConstTensorView> parts,
                     const TensorView& out) {
  CudaState& state = StateOf(context);
  const size_t out_bytes = out.dim(1) * sizeof(float);
  std::byte* to = out.data();
  for (const ConstTensorView& part : parts) {
    const size_t bytes = part.dim(1) * sizeof(float);
    if (part.elements() == 0 || !state.ok()) continue;
    state.Check(cudaMemcpy2DAsync(to, out_bytes, part.data(), bytes, bytes, part.dim(0),
                                  cudaMemcpyDeviceToDevice, state.launch().stream),
                "joining columns");
    to += bytes;
  }
}

void CombineRowsCuda(KernelContext& context, const ConstTensorView& x,
                     std::span<const uint32_t> rows, std::span<const float> weights,
                     const TensorView& out) {
  CudaState& state = StateOf(context);
  const uint32_t tokens = Size(out.dim(0));
  if (tokens == 0) return;
  const auto* row_numbers =
      static_cast<const uint32_t*>(state.Place(rows.data(), rows.size_bytes()));
  const auto* factors =
      static_cast<const float*>(state.Place(weights.data(), weights.size_bytes()));
  if (!state.ok()) return;
  state.Check(CombineRows(state.launch(), x.data(), x.dtype(), row_numbers, factors, tokens,
                          Size(rows.size() / tokens), Size(x.dim(1)), out.data()),
              "combining rows");
}

// The host chooses: it must know the experts anyway, to start their products.
void RouteExpertsCuda(KernelContext& context, const ConstTensorView& logits, uint32_t per_token,
                      bool normalize, std::span<uint32_t> experts, std::span<float> weights) {
  CudaState& state = StateOf(context);
  std::vector<float> copy(logits.elements());
  state.Check(state.device().CopyToHost(reinterpret_cast<std::byte*>(copy.data()), logits.data(),
                                        logits.bytes()));
  state.ForgetPlaced();
  const ConstTensorView host(reinterpret_cast<const std::byte*>(copy.data()), DType::kF32,
                             DeviceKind::kCpu, {logits.dim(0), logits.dim(1)});
  CpuKernels().route_experts(context, host, per_token, normalize, experts, weights);
}

absl::Status SampleTokensCuda(KernelContext& context, const TensorView& logits,
                              std::span<const SampleRow> samples, std::span<const LogitEdit> edits,
                              std::span<TokenId> tokens) {
  CudaState& state = StateOf(context);
  const uint32_t rows = Size(logits.dim(0));
  const uint32_t vocab = Size(logits.dim(1));
  if (rows == 0) return absl::OkStatus();
  const auto* placed =
      static_cast<const SampleRow*>(state.Place(samples.data(), samples.size_bytes()));
  const auto* changes =
      static_cast<const LogitEdit*>(state.Place(edits.data(), edits.size_bytes()));
  if (!state.ok()) return state.TakeStatus();
  // The tokens first, then what the kernels need.
  const size_t token_bytes = SampledTokensBytes(rows);
  auto* const scratch =
      static_cast<std::byte*>(state.Scratch(token_bytes + SampleScratchBytes(rows, vocab)));
  if (scratch == nullptr) return state.TakeStatus();
  auto* const chosen = reinterpret_cast<int32_t*>(scratch);
  state.Check(SampleTokens(state.launch(), logits.f32(), rows, vocab, placed, changes,
                           scratch + token_bytes, chosen),
              "choosing tokens");
  state.Check(state.device().CopyToHost(reinterpret_cast<std::byte*>(tokens.data()), scratch,
                                        rows * sizeof(int32_t)));
  return state.TakeStatus();
}

absl::Status StartSamplingCuda(KernelContext& context, const TensorView& logits,
                               const Placed<SampleRow>& samples, const Placed<LogitEdit>& edits) {
  CudaState& state = StateOf(context);
  const uint32_t rows = Size(logits.dim(0));
  const uint32_t vocab = Size(logits.dim(1));
  const SampleRow* const placed = DeviceNumbers(context, samples);
  const LogitEdit* const changes = DeviceNumbers(context, edits);
  void* const scratch = state.Scratch(SampleScratchBytes(rows, vocab));
  if (!state.ok()) return state.TakeStatus();
  state.Check(SampleTokens(state.launch(), logits.f32(), rows, vocab, placed, changes, scratch,
                           state.started_tokens().data()),
              "choosing tokens");
  return state.TakeStatus();
}

TensorView StartedTokensCuda(KernelContext& context, size_t rows) {
  static_assert(sizeof(TokenId) == sizeof(float));
  return TensorView(reinterpret_cast<std::byte*>(StateOf(context).started_tokens().data()),
                    DType::kF32, DeviceKind::kCuda, {rows});
}

absl::Status BringTokensCuda(KernelContext& context, size_t rows) {
  return StateOf(context).started_tokens().Bring(Size(rows));
}

absl::Status FinishSamplingCuda(KernelContext& context, std::span<TokenId> tokens) {
  return StateOf(context).started_tokens().Take(tokens);
}

}  // namespace

const KernelTable& CudaKernels() {
  static constexpr KernelTable kTable = {
      .numerics = "cuda-1",
      .create_state = CudaState::Create,
      .embedding = EmbeddingCuda,
      .rms_norm = RmsNormCuda,
      .add_rms_norm = AddRmsNormCuda,
      .layer_norm = LayerNormCuda,
      .pack_weight = PackWeightCuda,
      .grouped_linear = GroupedLinearCuda,
      .rotary_angles = RotaryAnglesCuda,
      .rope = RopeCuda,
      .write_kv = WriteKvCuda,
      .rope_write_kv = RopeWriteKvCuda,
      .attention = AttentionCuda,
      .silu_mul = SiluMulCuda,
      .gelu = GeluCuda,
      .gelu_mul = GeluMulCuda,
      .soft_cap = SoftCapCuda,
      .scale = ScaleCuda,
      .add = AddCuda,
      .gather_rows = GatherRowsCuda,
      .join_columns = JoinColumnsCuda,
      .combine_rows = CombineRowsCuda,
      .route_experts = RouteExpertsCuda,
      .can_route = CanRouteCuda,
      .route = RouteCuda,
      .routed_linear = RoutedLinearCuda,
      .combine_routed = CombineRoutedCuda,
      .sample_vocab_max = kSampleVocabMax,
      .sample_tokens = SampleTokensCuda,
      .start_sampling = StartSamplingCuda,
      .started_tokens = StartedTokensCuda,
      .bring_tokens = BringTokensCuda,
      .finish_sampling = FinishSamplingCuda,
  };
  return kTable;
}

}  // namespace baton::cuda
