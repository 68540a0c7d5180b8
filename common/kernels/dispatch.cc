// The only switch on the device, and the shape checks that all devices share.
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/kernel_table.h"
#include "common/kernels/kernels.h"

namespace baton {
namespace {

absl::StatusOr<const KernelTable*> KernelsFor(const Device* device) {
  if (device == nullptr || device->kind() == DeviceKind::kCpu) return &CpuKernels();
  const KernelTable* table = device->kernels();
  if (table != nullptr) return table;
  return absl::UnimplementedError(
      absl::StrCat("there are no kernels for device ", device->name(), "; choose device cpu"));
}

bool IsWeightType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// Of logits, the residual stream, and weights and biases of norms.
void CheckF32(const KernelContext& context, const ConstTensorView& x, size_t rank) {
  BATON_CHECK(x.dtype() == DType::kF32);
  BATON_CHECK(x.device() == context.device());
  BATON_CHECK(x.rank() == rank);
}

void CheckActivations(const KernelContext& context, const ConstTensorView& x, size_t rank) {
  BATON_CHECK(x.dtype() == context.activations());
  BATON_CHECK(x.device() == context.device());
  BATON_CHECK(x.rank() == rank);
}

void CheckEither(const KernelContext& context, const ConstTensorView& x, size_t rank) {
  if (x.dtype() == DType::kF32) return CheckF32(context, x, rank);
  CheckActivations(context, x, rank);
}

void CheckWeight(const KernelContext& context, const ConstTensorView& weight) {
  BATON_CHECK(IsWeightType(weight.dtype()));
  BATON_CHECK(weight.device() == context.device());
  BATON_CHECK(weight.rank() == 2);
}

void CheckSequences(std::span<const SequenceRows> sequences, const KvPages& pages, size_t rows) {
  BATON_CHECK(pages.data != nullptr);
  BATON_CHECK(pages.block_tokens > 0);
  BATON_CHECK(pages.head_dim <= kHeadDimMax);
  for (const SequenceRows& sequence : sequences) {
    BATON_CHECK(sequence.row <= rows);
    BATON_CHECK(sequence.count <= rows - sequence.row);
    BATON_CHECK(static_cast<size_t>(sequence.position) + sequence.count <=
                sequence.blocks.size() * pages.block_tokens);
  }
}

bool SameShape(const ConstTensorView& a, const ConstTensorView& b) {
  if (a.rank() != b.rank()) return false;
  for (size_t axis = 0; axis < a.rank(); ++axis) {
    if (a.dim(axis) != b.dim(axis)) return false;
  }
  return true;
}

void CheckKv(const KernelContext& context, const ConstTensorView& k, const ConstTensorView& v,
             const PlacedSequences& sequences, const KvPages& pages) {
  CheckActivations(context, k, 3);
  CheckActivations(context, v, 3);
  BATON_CHECK(SameShape(k, v));
  BATON_CHECK(k.dim(1) == pages.kv_heads);
  BATON_CHECK(k.dim(2) == pages.head_dim);
  CheckSequences(sequences.host, pages, k.dim(0));
}

void CheckOutput(const KernelContext& context, const ConstTensorView& x, size_t rows,
                 const LinearOutput& output) {
  CheckEither(context, output.out, 2);
  BATON_CHECK(output.weight != nullptr);
  BATON_CHECK(output.weight->inputs() == x.dim(1));
  BATON_CHECK(output.out.dim(0) == rows);
  BATON_CHECK(output.out.dim(1) == output.weight->outputs());
  if (output.bias.empty()) return;
  CheckEither(context, output.bias, 1);
  BATON_CHECK(output.bias.dtype() == output.out.dtype());
  BATON_CHECK(output.bias.dim(0) == output.weight->outputs());
}

void CheckSampling(const KernelContext& context, const TensorView& logits,
                   std::span<const SampleRow> samples, std::span<const LogitEdit> edits) {
  CheckF32(context, logits, 2);
  BATON_CHECK(CanSampleTokens(context, logits.dim(1)));
  BATON_CHECK(samples.size() == logits.dim(0));
  for (const SampleRow& sample : samples) {
    BATON_CHECK(sample.edits_begin <= sample.edits_end && sample.edits_end <= edits.size());
  }
}

void CheckGated(const KernelContext& context, const ConstTensorView& gate,
                const ConstTensorView& up, const TensorView& out) {
  CheckActivations(context, gate, 2);
  CheckActivations(context, up, 2);
  CheckActivations(context, out, 2);
  BATON_CHECK(SameShape(gate, up));
  BATON_CHECK(SameShape(gate, out));
}

}  // namespace

const char* CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kBaseline:
      return "baseline";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "invalid";
}

absl::StatusOr<std::unique_ptr<KernelContext>> KernelContext::Create(const KernelOptions& options) {
  if (options.threads == 0 || options.threads > KernelThreads::kThreadsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kernel threads must be 1 to ", KernelThreads::kThreadsMax, ", not ", options.threads));
  }
  BATON_ASSIGN_OR_RETURN(const KernelTable* table, KernelsFor(options.device));
  const CpuOps* cpu_ops = nullptr;
  std::unique_ptr<KernelState> state;
  if (table->create_state != nullptr) {
    BATON_ASSIGN_OR_RETURN(state, table->create_state(options));
  } else {
    BATON_CHECK(options.activations == DType::kF32);
    cpu_ops = FindCpuOps(options.cpu_isa);
    if (cpu_ops == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("this CPU or build has no ", CpuIsaName(options.cpu_isa)));
    }
  }
  return std::unique_ptr<KernelContext>(
      new KernelContext(options, table, cpu_ops, std::move(state)));
}

KernelContext::KernelContext(const KernelOptions& options, const KernelTable* table,
                             const CpuOps* cpu_ops, std::unique_ptr<KernelState> state)
    : options_(options),
      table_(table),
      cpu_ops_(cpu_ops),
      state_(std::move(state)),
      threads_(options.threads, options.pin_threads),
      scratch_(options.threads) {}

void KernelContext::FreeDeleter::operator()(float* data) const { std::free(data); }

const char* KernelContext::numerics() const { return table_->numerics; }

void KernelContext::BeginStep() {
  if (state_ != nullptr) state_->BeginStep();
}

Placed<TokenId> KernelContext::Place(std::span<const TokenId> ids) {
  if (state_ == nullptr) return ids;
  return {ids, static_cast<const TokenId*>(state_->Place(ids.data(), ids.size_bytes()))};
}

Placed<uint32_t> KernelContext::Place(std::span<const uint32_t> rows) {
  if (state_ == nullptr) return rows;
  return {rows, static_cast<const uint32_t*>(state_->Place(rows.data(), rows.size_bytes()))};
}

Placed<SampleRow> KernelContext::Place(std::span<const SampleRow> samples) {
  if (state_ == nullptr) return samples;
  return {samples,
          static_cast<const SampleRow*>(state_->Place(samples.data(), samples.size_bytes()))};
}

Placed<LogitEdit> KernelContext::Place(std::span<const LogitEdit> edits) {
  if (state_ == nullptr) return edits;
  return {edits, static_cast<const LogitEdit*>(state_->Place(edits.data(), edits.size_bytes()))};
}

PlacedSequences KernelContext::Place(std::span<const SequenceRows> sequences, uint32_t end_max) {
  PlacedSequences placed = sequences;
  if (state_ != nullptr) placed.device = state_->Place(sequences, end_max);
  return placed;
}

absl::Status KernelContext::RunStep(const StepShape* shape,
                                    absl::FunctionRef<absl::Status()> body) {
  return state_ == nullptr ? body() : state_->RunStep(shape, body);
}

absl::Status KernelContext::Reserve(const StepBounds& bounds) {
  return state_ == nullptr ? absl::OkStatus() : state_->Reserve(bounds);
}

absl::Status KernelContext::Finish() {
  return state_ == nullptr ? absl::OkStatus() : state_->Finish();
}

absl::Status KernelContext::Health() const {
  return state_ == nullptr ? absl::OkStatus() : state_->Health();
}

void KernelContext::WhenDone(std::function<void()> done) {
  if (state_ != nullptr) return state_->WhenDone(std::move(done));
  done();
}

uint32_t KernelContext::PaddedRows(uint32_t rows) const {
  return state_ == nullptr ? rows : state_->PaddedRows(rows);
}

float* KernelContext::Grow(ScratchMemory* scratch, size_t floats) {
  if (scratch->floats < floats) {
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    scratch->data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    BATON_CHECK_MSG(scratch->data != nullptr, absl::StrCat("out of memory: ", bytes, " bytes"));
    scratch->floats = floats;
  }
  return scratch->data.get();
}

void Embedding(KernelContext& context, const ConstTensorView& table, const Placed<TokenId>& ids,
               const TensorView& out) {
  CheckWeight(context, table);
  CheckF32(context, out, 2);
  BATON_CHECK(out.dim(0) == ids.host.size());
  BATON_CHECK(out.dim(1) == table.dim(1));
  const bool chooses = context.table().sample_vocab_max > 0;
  for (TokenId id : ids.host) {
    const bool chosen = chooses && id < 0 && id >= ChosenBy(kStartedRowsMax - 1);
    BATON_CHECK(chosen || (id >= 0 && static_cast<size_t>(id) < table.dim(0)));
  }
  context.table().embedding(context, table, ids, out);
}

void RmsNorm(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
             float epsilon, const TensorView& out) {
  CheckEither(context, x, 2);
  CheckF32(context, weight, 1);
  CheckEither(context, out, 2);
  BATON_CHECK(SameShape(x, out));
  BATON_CHECK(weight.dim(0) == x.dim(1));
  context.table().rms_norm(context, x, weight, epsilon, out);
}

void AddRmsNorm(KernelContext& context, const ConstTensorView& y, const TensorView& x,
                const ConstTensorView& weight, float epsilon, const TensorView& out) {
  CheckActivations(context, y, 2);
  CheckF32(context, x, 2);
  CheckF32(context, weight, 1);
  CheckActivations(context, out, 2);
  BATON_CHECK(SameShape(x, y));
  BATON_CHECK(SameShape(x, out));
  BATON_CHECK(weight.dim(0) == x.dim(1));
  context.table().add_rms_norm(context, y, x, weight, epsilon, out);
}

void LayerNorm(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
               const ConstTensorView& bias, float epsilon, const TensorView& out) {
  CheckF32(context, x, 2);
  CheckF32(context, weight, 1);
  CheckF32(context, bias, 1);
  CheckEither(context, out, 2);
  BATON_CHECK(SameShape(x, out));
  BATON_CHECK(SameShape(weight, bias));
  BATON_CHECK(weight.dim(0) == x.dim(1));
  context.table().layer_norm(context, x, weight, bias, epsilon, out);
}

absl::StatusOr<PackedWeight> PackWeight(KernelContext& context, Device& device,
                                        const ConstTensorView& matrix, WeightFormat format) {
  BATON_CHECK(IsWeightType(matrix.dtype()));
  BATON_CHECK(matrix.rank() == 2);
  BATON_CHECK(device.kind() == context.device());
  return context.table().pack_weight(context, device, matrix, format);
}

void Linear(KernelContext& context, const ConstTensorView& x,
            std::span<const LinearOutput> outputs) {
  CheckActivations(context, x, 2);
  const LinearGroup group = {.row = 0, .rows = x.dim(0), .outputs = outputs};
  GroupedLinear(context, x, {&group, 1});
}

void GroupedLinear(KernelContext& context, const ConstTensorView& x,
                   std::span<const LinearGroup> groups) {
  CheckActivations(context, x, 2);
  size_t end = 0;
  for (const LinearGroup& group : groups) {
    BATON_CHECK(group.row >= end);
    BATON_CHECK(group.row <= x.dim(0) && group.rows <= x.dim(0) - group.row);
    end = group.row + group.rows;
    for (const LinearOutput& output : group.outputs) CheckOutput(context, x, group.rows, output);
  }
  context.table().grouped_linear(context, x, groups);
}

void RotaryAngles(KernelContext& context, const PlacedSequences& sequences,
                  const ConstTensorView& frequencies, float factor, const TensorView& cosines,
                  const TensorView& sines) {
  CheckF32(context, frequencies, 1);
  CheckF32(context, cosines, 2);
  CheckF32(context, sines, 2);
  BATON_CHECK(SameShape(cosines, sines));
  BATON_CHECK(cosines.dim(1) == frequencies.dim(0));
  for (const SequenceRows& sequence : sequences.host) {
    BATON_CHECK(sequence.row + sequence.count <= cosines.dim(0));
  }
  context.table().rotary_angles(context, sequences, frequencies, factor, cosines, sines);
}

void Rope(KernelContext& context, const ConstTensorView& cosines, const ConstTensorView& sines,
          const TensorView& x) {
  CheckF32(context, cosines, 2);
  CheckF32(context, sines, 2);
  CheckActivations(context, x, 3);
  BATON_CHECK(SameShape(cosines, sines));
  BATON_CHECK(cosines.dim(0) == x.dim(0));
  BATON_CHECK(cosines.dim(1) * 2 <= x.dim(2));
  context.table().rope(context, cosines, sines, x);
}

void WriteKv(KernelContext& context, const ConstTensorView& k, const ConstTensorView& v,
             const PlacedSequences& sequences, const KvPages& pages) {
  CheckKv(context, k, v, sequences, pages);
  context.table().write_kv(context, k, v, sequences, pages);
}

void RopeWriteKv(KernelContext& context, const ConstTensorView& cosines,
                 const ConstTensorView& sines, const TensorView& q, const TensorView& k,
                 const ConstTensorView& v, const PlacedSequences& sequences, const KvPages& pages) {
  CheckF32(context, cosines, 2);
  CheckF32(context, sines, 2);
  CheckActivations(context, q, 3);
  CheckKv(context, k, v, sequences, pages);
  BATON_CHECK(SameShape(cosines, sines));
  BATON_CHECK(q.dim(0) == k.dim(0) && q.dim(2) == k.dim(2));
  BATON_CHECK(cosines.dim(0) == q.dim(0));
  BATON_CHECK(cosines.dim(1) * 2 <= q.dim(2));
  context.table().rope_write_kv(context, cosines, sines, q, k, v, sequences, pages);
}

void Attention(KernelContext& context, const ConstTensorView& q, const KvPages& pages,
               const PlacedSequences& sequences, const AttentionOptions& options,
               const TensorView& out) {
  CheckActivations(context, q, 3);
  CheckActivations(context, out, 3);
  BATON_CHECK(SameShape(q, out));
  BATON_CHECK(pages.kv_heads > 0 && q.dim(1) % pages.kv_heads == 0);
  BATON_CHECK(q.dim(2) == pages.head_dim);
  CheckSequences(sequences.host, pages, q.dim(0));
  BATON_CHECK(options.soft_cap >= 0.0f);
  context.table().attention(context, q, pages, sequences, options, out);
}

void SiluMul(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
             const TensorView& out) {
  CheckGated(context, gate, up, out);
  context.table().silu_mul(context, gate, up, out);
}

void Gelu(KernelContext& context, const ConstTensorView& x, const TensorView& out) {
  CheckActivations(context, x, 2);
  CheckActivations(context, out, 2);
  BATON_CHECK(SameShape(x, out));
  context.table().gelu(context, x, out);
}

void GeluMul(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
             const TensorView& out) {
  CheckGated(context, gate, up, out);
  context.table().gelu_mul(context, gate, up, out);
}

void SoftCap(KernelContext& context, float cap, const TensorView& x) {
  CheckF32(context, x, 2);
  BATON_CHECK(cap > 0.0f);
  context.table().soft_cap(context, cap, x);
}

void Scale(KernelContext& context, float factor, const TensorView& x) {
  CheckF32(context, x, 2);
  context.table().scale(context, factor, x);
}

void Add(KernelContext& context, const ConstTensorView& y, const TensorView& x) {
  CheckEither(context, y, 2);
  CheckF32(context, x, 2);
  BATON_CHECK(SameShape(x, y));
  context.table().add(context, y, x);
}

void GatherRows(KernelContext& context, const ConstTensorView& x, const Placed<uint32_t>& rows,
                const TensorView& out) {
  CheckEither(context, x, 2);
  CheckEither(context, out, 2);
  BATON_CHECK(out.dtype() == x.dtype());
  BATON_CHECK(out.dim(0) == rows.host.size());
  BATON_CHECK(out.dim(1) == x.dim(1));
  for (uint32_t row : rows.host) BATON_CHECK(row < x.dim(0));
  context.table().gather_rows(context, x, rows, out);
}

void JoinColumns(KernelContext& context, std::span<const ConstTensorView> parts,
                 const TensorView& out) {
  CheckF32(context, out, 2);
  size_t columns = 0;
  for (const ConstTensorView& part : parts) {
    CheckF32(context, part, 2);
    BATON_CHECK(part.dim(0) == out.dim(0));
    columns += part.dim(1);
  }
  BATON_CHECK(columns == out.dim(1));
  context.table().join_columns(context, parts, out);
}

void CombineRows(KernelContext& context, const ConstTensorView& x, std::span<const uint32_t> rows,
                 std::span<const float> weights, const TensorView& out) {
  CheckActivations(context, x, 2);
  CheckActivations(context, out, 2);
  BATON_CHECK(rows.size() == weights.size());
  BATON_CHECK(out.dim(0) == 0 || rows.size() % out.dim(0) == 0);
  BATON_CHECK(out.dim(1) == x.dim(1));
  for (uint32_t row : rows) BATON_CHECK(row < x.dim(0));
  context.table().combine_rows(context, x, rows, weights, out);
}

void RouteExperts(KernelContext& context, const ConstTensorView& logits, uint32_t per_token,
                  bool normalize, std::span<uint32_t> experts, std::span<float> weights) {
  CheckF32(context, logits, 2);
  BATON_CHECK(per_token > 0 && per_token <= logits.dim(1));
  BATON_CHECK(experts.size() == logits.dim(0) * per_token);
  BATON_CHECK(weights.size() == experts.size());
  context.table().route_experts(context, logits, per_token, normalize, experts, weights);
}

bool CanRoute(const KernelContext& context, const Routing& routing, const PackedWeight& weight) {
  return context.table().can_route != nullptr &&
         context.table().can_route(context, routing, weight);
}

void Route(KernelContext& context, const ConstTensorView& logits,
           const ConstTensorView& shared_logits, const PlacedSequences& sequences, bool normalize,
           const Routing& routing) {
  CheckF32(context, logits, 2);
  BATON_CHECK(logits.dim(0) == routing.tokens && logits.dim(1) == routing.experts);
  BATON_CHECK(routing.per_token > 0 && routing.per_token <= routing.experts);
  BATON_CHECK(routing.terms == routing.per_token + (shared_logits.empty() ? 0 : 1));
  if (!shared_logits.empty()) {
    CheckF32(context, shared_logits, 2);
    BATON_CHECK(shared_logits.elements() == routing.tokens);
  }
  context.table().route(context, logits, shared_logits, sequences, normalize, routing);
}

void RoutedLinear(KernelContext& context, const ConstTensorView& x, bool by_token,
                  ExpertProducts weights, const Routing& routing, std::span<const TensorView> out) {
  CheckActivations(context, x, 2);
  BATON_CHECK(x.dim(0) == (by_token ? routing.tokens : routing.rows()));
  BATON_CHECK(weights.size() == routing.experts * out.size());
  for (const PackedWeight* weight : weights) {
    BATON_CHECK(weight->inputs() == x.dim(1) && weight->outputs() == out[0].dim(1));
    BATON_CHECK(weight->format().form == weights[0]->format().form);
  }
  for (const TensorView& view : out) {
    CheckActivations(context, view, 2);
    BATON_CHECK(view.dim(0) == routing.rows() && view.dim(1) == out[0].dim(1));
  }
  context.table().routed_linear(context, x, by_token, weights, routing, out);
}

void CombineRouted(KernelContext& context, const ConstTensorView& x, const Routing& routing,
                   const TensorView& out) {
  CheckActivations(context, x, 2);
  CheckActivations(context, out, 2);
  BATON_CHECK(out.dim(0) == routing.tokens && out.dim(1) == x.dim(1));
  context.table().combine_routed(context, x, routing, out);
}

bool CanSampleTokens(const KernelContext& context, size_t vocab) {
  return vocab <= context.table().sample_vocab_max;
}

absl::Status SampleTokens(KernelContext& context, const TensorView& logits,
                          std::span<const SampleRow> samples, std::span<const LogitEdit> edits,
                          std::span<TokenId> tokens) {
  CheckSampling(context, logits, samples, edits);
  BATON_CHECK(tokens.size() == logits.dim(0));
  return context.table().sample_tokens(context, logits, samples, edits, tokens);
}

absl::Status StartSampling(KernelContext& context, const TensorView& logits,
                           const Placed<SampleRow>& samples, const Placed<LogitEdit>& edits) {
  CheckSampling(context, logits, samples.host, edits.host);
  BATON_CHECK(logits.dim(0) <= kStartedRowsMax);
  return context.table().start_sampling(context, logits, samples, edits);
}

TensorView StartedTokens(KernelContext& context, size_t rows) {
  BATON_CHECK(rows <= kStartedRowsMax);
  return context.table().started_tokens(context, rows);
}

absl::Status BringTokens(KernelContext& context, size_t rows) {
  BATON_CHECK(rows <= kStartedRowsMax);
  return context.table().bring_tokens(context, rows);
}

absl::Status FinishSampling(KernelContext& context, std::span<TokenId> tokens) {
  return context.table().finish_sampling(context, tokens);
}

}  // namespace baton
