#include "common/model/expert_mixture.h"

#include <utility>

#include "common/base/deterministic_math.h"
#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<std::unique_ptr<ExpertMixture>> ExpertMixture::Create(Device& device,
                                                                     KernelContext& context,
                                                                     const ModelConfig& config,
                                                                     uint32_t tokens_max,
                                                                     Collective* collective) {
  std::unique_ptr<ExpertMixture> mixture(
      new ExpertMixture(device, context, config.experts, config.hidden_size, collective));
  BATON_RETURN_IF_ERROR(mixture->AllocateScratch(tokens_max));
  return mixture;
}

absl::Status ExpertMixture::AllocateScratch(size_t tokens) {
  const auto allocate = [this](DType type, size_t rows, size_t columns,
                               TensorView* view) -> absl::Status {
    BATON_ASSIGN_OR_RETURN(DeviceMemory memory,
                           device_.Allocate(rows * columns * DTypeBytes(type)));
    *view = TensorView(memory.data(), type, device_.kind(), {rows, columns});
    memory_.push_back(std::move(memory));
    return absl::OkStatus();
  };
  const size_t routed = tokens * config_.per_token;
  const DType type = context_.activations();
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, tokens, config_.count, &logits_));
  BATON_RETURN_IF_ERROR(allocate(type, tokens * terms(), hidden_, &rows_));
  BATON_RETURN_IF_ERROR(allocate(type, routed, config_.intermediate_size, &gate_));
  BATON_RETURN_IF_ERROR(allocate(type, routed, config_.intermediate_size, &up_));
  BATON_ASSIGN_OR_RETURN(routing_, device_.Allocate(RoutingBytes(RoutingOf(tokens))));
  if (!has_shared()) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, tokens, 1, &shared_logits_));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, config_.shared_intermediate_size, &shared_gate_));
  return allocate(type, tokens, config_.shared_intermediate_size, &shared_up_);
}

absl::Status ExpertMixture::Run(const ExpertWeights& weights, const PlacedSequences& sequences,
                                const TensorView& x, const TensorView& out) {
  if (RunsOnDevice(weights, x.dim(0))) return RunOnDevice(weights, sequences, x, out);
  BATON_RETURN_IF_ERROR(Route(weights, x));
  Sort(x.dim(0));
  RunGroups(weights, x);
  if (has_shared()) RunShared(weights.shared, x, gathered_.size());
  CombineRows(context_, rows_, term_rows_, term_weights_, out);
  return absl::OkStatus();
}

Routing ExpertMixture::RoutingOf(size_t tokens) const {
  return {.tokens = tokens,
          .experts = config_.count,
          .per_token = config_.per_token,
          .terms = terms(),
          .tables = routing_.data()};
}

bool ExpertMixture::RunsOnDevice(const ExpertWeights& weights, size_t tokens) const {
  const NetworkWeights& network = weights.networks[0];
  return tokens > 0 && CanRoute(context_, RoutingOf(tokens), network.gate) &&
         CanRoute(context_, RoutingOf(tokens), network.down);
}

absl::Status ExpertMixture::RunOnDevice(const ExpertWeights& weights,
                                        const PlacedSequences& sequences, const TensorView& x,
                                        const TensorView& out) {
  const size_t tokens = x.dim(0);
  const Routing routing = RoutingOf(tokens);
  BATON_RETURN_IF_ERROR(FindLogits(weights, x));
  baton::Route(context_, logits_.Rows(0, tokens),
               has_shared() ? shared_logits_.Rows(0, tokens) : TensorView(), sequences,
               config_.normalize, routing);
  std::vector<const PackedWeight*> gate_up;
  std::vector<const PackedWeight*> down;
  for (const NetworkWeights& network : weights.networks) {
    gate_up.push_back(&network.gate);
    gate_up.push_back(&network.up);
    down.push_back(&network.down);
  }
  const TensorView gate = gate_.Rows(0, routing.rows());
  const TensorView up = up_.Rows(0, routing.rows());
  const TensorView rows = rows_.Rows(0, routing.rows());
  const TensorView both[] = {gate, up};
  RoutedLinear(context_, x, /*by_token=*/true, gate_up, routing, both);
  SiluMul(context_, gate, up, gate);
  RoutedLinear(context_, gate, /*by_token=*/false, down, routing, {&rows, 1});
  if (has_shared()) RunShared(weights.shared, x, routing.rows());
  CombineRouted(context_, rows_, routing, out);
  return absl::OkStatus();
}

// Fills logits_ and, with an expert of all tokens, shared_logits_.
absl::Status ExpertMixture::FindLogits(const ExpertWeights& weights, const TensorView& x) {
  const TensorView logits = logits_.Rows(0, x.dim(0));
  const LinearOutput router[] = {{&weights.router, {}, logits}};
  Linear(context_, x, router);
  if (has_shared()) {
    const LinearOutput shared[] = {{&weights.shared_gate, {}, shared_logits_.Rows(0, x.dim(0))}};
    Linear(context_, x, shared);
  }
  // On GPUs logits may differ in a last bit, and ranks that choose other experts would add up parts
  // of different things.
  return collective_ == nullptr ? absl::OkStatus() : collective_->Broadcast(logits);
}

absl::Status ExpertMixture::Route(const ExpertWeights& weights, const TensorView& x) {
  const size_t tokens = x.dim(0);
  const TensorView logits = logits_.Rows(0, tokens);
  BATON_RETURN_IF_ERROR(FindLogits(weights, x));
  choices_.resize(tokens * config_.per_token);
  choice_weights_.resize(choices_.size());
  RouteExperts(context_, logits, config_.per_token, config_.normalize, choices_, choice_weights_);
  if (!has_shared()) return absl::OkStatus();
  const TensorView shared = shared_logits_.Rows(0, tokens);
  shared_weights_.resize(tokens);
  BATON_RETURN_IF_ERROR(device_.CopyToHost(reinterpret_cast<std::byte*>(shared_weights_.data()),
                                           shared.data(), shared.bytes()));
  for (float& weight : shared_weights_) weight = 1.0f / (StableExp(-weight) + 1.0f);  // Sigmoid.
  return absl::OkStatus();
}

void ExpertMixture::Sort(size_t tokens) {
  const size_t per_token = config_.per_token;
  std::vector<uint32_t> next(config_.count + 1, 0);  // First the row that an expert begins at.
  for (uint32_t expert : choices_) ++next[expert + 1];
  groups_.clear();
  for (uint32_t expert = 0; expert < config_.count; ++expert) {
    const uint32_t rows = next[expert + 1];
    next[expert + 1] += next[expert];
    if (rows > 0) groups_.push_back({.expert = expert, .row = next[expert], .rows = rows});
  }
  gathered_.resize(choices_.size());
  term_rows_.resize(tokens * terms());
  term_weights_.resize(term_rows_.size());
  for (size_t token = 0; token < tokens; ++token) {
    for (size_t i = 0; i < per_token; ++i) {
      const uint32_t row = next[choices_[token * per_token + i]]++;
      gathered_[row] = static_cast<uint32_t>(token);
      term_rows_[token * terms() + i] = row;
      term_weights_[token * terms() + i] = choice_weights_[token * per_token + i];
    }
    if (!has_shared()) continue;
    term_rows_[token * terms() + per_token] = static_cast<uint32_t>(choices_.size() + token);
    term_weights_[token * terms() + per_token] = shared_weights_[token];
  }
}

void ExpertMixture::RunGroups(const ExpertWeights& weights, const TensorView& x) {
  const TensorView rows = rows_.Rows(0, gathered_.size());
  const TensorView gate = gate_.Rows(0, gathered_.size());
  const TensorView up = up_.Rows(0, gathered_.size());
  GatherRows(context_, x, gathered_, rows);
  std::vector<LinearOutput> outputs;
  for (const Group& group : groups_) {
    const NetworkWeights& network = weights.networks[group.expert];
    outputs.push_back({&network.gate, {}, gate.Rows(group.row, group.rows)});
    outputs.push_back({&network.up, {}, up.Rows(group.row, group.rows)});
  }
  for (const Group& group : groups_) {
    const NetworkWeights& network = weights.networks[group.expert];
    outputs.push_back({&network.down, {}, rows.Rows(group.row, group.rows)});
  }
  const std::span<const LinearOutput> all(outputs);
  std::vector<LinearGroup> gate_up;
  std::vector<LinearGroup> down;
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Group& group = groups_[i];
    gate_up.push_back({group.row, group.rows, all.subspan(2 * i, 2)});
    down.push_back({group.row, group.rows, all.subspan(2 * groups_.size() + i, 1)});
  }
  GroupedLinear(context_, rows, gate_up);
  SiluMul(context_, gate, up, gate);
  GroupedLinear(context_, gate, down);
}

void ExpertMixture::RunShared(const NetworkWeights& shared, const TensorView& x, size_t routed) {
  const size_t tokens = x.dim(0);
  const TensorView gate = shared_gate_.Rows(0, tokens);
  const TensorView up = shared_up_.Rows(0, tokens);
  const LinearOutput gate_up[] = {{&shared.gate, {}, gate}, {&shared.up, {}, up}};
  Linear(context_, x, gate_up);
  SiluMul(context_, gate, up, gate);
  const LinearOutput down[] = {{&shared.down, {}, rows_.Rows(routed, tokens)}};
  Linear(context_, gate, down);
}

}  // namespace baton
