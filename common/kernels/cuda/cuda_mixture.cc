#include "common/kernels/cuda/cuda_mixture.h"

#include <memory>

#include "common/kernels/cuda/cuda_packing.h"
#include "common/kernels/cuda/cuda_state.h"
#include "common/kernels/cuda/launch.h"

namespace baton::cuda {
namespace {

uint32_t Size(size_t size) { return static_cast<uint32_t>(size); }

RoutingShape ShapeOf(const Routing& routing) {
  return {.tokens = Size(routing.tokens),
          .experts = Size(routing.experts),
          .per_token = Size(routing.per_token),
          .terms = Size(routing.terms)};
}

// As RoutingBytes counts them.
static_assert(sizeof(RoutedGroup) == 3 * sizeof(uint32_t));
RoutingTables TablesOf(const Routing& routing) {
  RoutingTables tables;
  tables.groups = reinterpret_cast<RoutedGroup*>(routing.tables);
  tables.row_tokens =
      reinterpret_cast<uint32_t*>(tables.groups + RoutedGroupsMax(ShapeOf(routing)));
  tables.term_rows = tables.row_tokens + routing.rows();
  tables.term_weights = reinterpret_cast<float*>(tables.term_rows + routing.tokens * routing.terms);
  return tables;
}

SkinnyOutput OutputOf(const PackedWeight& weight, DType activations) {
  const std::byte* const scales = weight.data() + ScalesOffset(weight.outputs(), weight.inputs());
  return {.weight = weight.data(),
          .scales = HasScales(StoredAs(weight.format().form, activations))
                        ? reinterpret_cast<const float*>(scales)
                        : nullptr,
          .outputs = Size(weight.outputs())};
}

// Where the weights lie, in device memory.
const SkinnyOutput* KeepWeights(CudaState& state, ExpertProducts weights, DType activations) {
  const void* const kept =
      state.Keep(weights[0]->data(), weights.size() * sizeof(SkinnyOutput), [&](std::byte* to) {
        auto* const outputs = reinterpret_cast<SkinnyOutput*>(to);
        for (size_t i = 0; i < weights.size(); ++i) outputs[i] = OutputOf(*weights[i], activations);
      });
  return static_cast<const SkinnyOutput*>(kept);
}

}  // namespace

bool CanRouteCuda(const KernelContext& context, const Routing& routing,
                  const PackedWeight& weight) {
  return routing.tokens <= kRoutedTokensMax && routing.experts <= kRoutedExpertsMax &&
         SkinnyLinearFits(context.activations(),
                          StoredAs(weight.format().form, context.activations()),
                          Size(routing.tokens), Size(weight.inputs()));
}

void RouteCuda(KernelContext& context, const ConstTensorView& logits,
               const ConstTensorView& shared_logits, const PlacedSequences& sequences,
               bool normalize, const Routing& routing) {
  auto& state = static_cast<CudaState&>(*context.state());
  const std::shared_ptr<const PlacedTable> table = state.TableOf(sequences);
  state.Check(RouteTokens(state.launch(), logits.f32(),
                          shared_logits.empty() ? nullptr : shared_logits.f32(),
                          table->all.row_sequence, ShapeOf(routing), normalize, TablesOf(routing)),
              "choosing experts");
}

void RoutedLinearCuda(KernelContext& context, const ConstTensorView& x, bool by_token,
                      ExpertProducts weights, const Routing& routing,
                      std::span<const TensorView> out) {
  auto& state = static_cast<CudaState&>(*context.state());
  const SkinnyOutput* const experts = KeepWeights(state, weights, x.dtype());
  if (experts == nullptr) return;
  RoutedProducts products = {.shape = ShapeOf(routing),
                             .tables = TablesOf(routing),
                             .by_token = by_token,
                             .inputs = Size(x.dim(1)),
                             .outputs = Size(out[0].dim(1)),
                             .each = Size(out.size()),
                             .experts = experts};
  for (size_t i = 0; i < out.size(); ++i) products.out[i] = out[i].data();
  state.Check(RoutedLinear(state.launch(), x.data(), x.dtype(),
                           StoredAs(weights[0]->format().form, x.dtype()), products),
              "products of experts");
}

void CombineRoutedCuda(KernelContext& context, const ConstTensorView& x, const Routing& routing,
                       const TensorView& out) {
  auto& state = static_cast<CudaState&>(*context.state());
  const RoutingTables tables = TablesOf(routing);
  state.Check(
      CombineRows(state.launch(), x.data(), x.dtype(), tables.term_rows, tables.term_weights,
                  Size(routing.tokens), Size(routing.terms), Size(x.dim(1)), out.data()),
      "combining rows");
}

}  // namespace baton::cuda
