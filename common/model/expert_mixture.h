// Runs mixtures of experts: routes tokens, runs each expert once for all of its tokens, adds up.
//
// A token's result is the sum over its experts in ascending order, and then the expert of all
// tokens: whatever else is in the batch. Scratch memory is shared by all layers; one thread at a
// time.
#ifndef BATON_COMMON_MODEL_EXPERT_MIXTURE_H_
#define BATON_COMMON_MODEL_EXPERT_MIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/collective/collective.h"
#include "common/kernels/kernels.h"
#include "common/model/model_config.h"
#include "common/model/weights.h"

namespace baton {

class ExpertMixture {
 public:
  // Allocates the scratch memory for `tokens_max` tokens. Device, context and collective outlive
  // the mixture. With a collective the outputs are the rank's part of a sum.
  // REQUIRES: config.experts.count > 0.
  static absl::StatusOr<std::unique_ptr<ExpertMixture>> Create(Device& device,
                                                               KernelContext& context,
                                                               const ModelConfig& config,
                                                               uint32_t tokens_max,
                                                               Collective* collective = nullptr);

  // out = the mixture's output for each row of x that belongs to a sequence. x, out [tokens,
  // hidden]. `out` may be `x`. REQUIRES: at most tokens_max tokens.
  absl::Status Run(const ExpertWeights& weights, const PlacedSequences& sequences,
                   const TensorView& x, const TensorView& out);
  // Whether Run needs the host for so many tokens only to queue what the device does: so it can be
  // recorded.
  bool RunsOnDevice(const ExpertWeights& weights, size_t tokens) const;

 private:
  // The tokens of one expert, which lie behind each other once they are gathered.
  struct Group {
    uint32_t expert = 0;
    uint32_t row = 0;
    uint32_t rows = 0;
  };

  ExpertMixture(Device& device, KernelContext& context, const ExpertsConfig& config, size_t hidden,
                Collective* collective)
      : device_(device),
        context_(context),
        config_(config),
        hidden_(hidden),
        collective_(collective) {}

  absl::Status AllocateScratch(size_t tokens);
  absl::Status RunOnDevice(const ExpertWeights& weights, const PlacedSequences& sequences,
                           const TensorView& x, const TensorView& out);
  absl::Status FindLogits(const ExpertWeights& weights, const TensorView& x);
  Routing RoutingOf(size_t tokens) const;
  // Fills choices_, weights_ and, with an expert of all tokens, its weights.
  absl::Status Route(const ExpertWeights& weights, const TensorView& x);
  // From choices_: which tokens are gathered, the groups, and where each term of a sum lies.
  void Sort(size_t tokens);
  void RunGroups(const ExpertWeights& weights, const TensorView& x);
  // To the last rows of rows_, behind `routed` others.
  void RunShared(const NetworkWeights& shared, const TensorView& x, size_t routed);
  // Of a token's sum.
  size_t terms() const { return config_.per_token + (has_shared() ? 1 : 0); }
  bool has_shared() const { return config_.shared_intermediate_size > 0; }

  Device& device_;
  KernelContext& context_;
  const ExpertsConfig config_;
  const size_t hidden_;
  Collective* const collective_;  // Null: there is one rank.

  std::vector<DeviceMemory> memory_;  // Behind the tensors.
  DeviceMemory routing_;              // Of RunOnDevice.
  TensorView logits_;                 // [tokens, experts]
  TensorView shared_logits_;          // [tokens, 1]
  // Inputs of the experts, then their outputs: [tokens * terms, hidden]. Rows of the expert of all
  // tokens come last.
  TensorView rows_;
  TensorView gate_;         // [tokens * per_token, intermediate]
  TensorView up_;           // As gate_.
  TensorView shared_gate_;  // [tokens, shared intermediate]
  TensorView shared_up_;    // As shared_gate_.

  // Of the call in hand, on the host.
  std::vector<uint32_t> choices_;      // [tokens, per_token]: experts, ascending.
  std::vector<float> choice_weights_;  // As choices_.
  std::vector<float> shared_weights_;  // [tokens]
  std::vector<Group> groups_;          // Ascending by expert; none is empty.
  std::vector<uint32_t> gathered_;     // The token of each row.
  std::vector<uint32_t> term_rows_;    // [tokens, terms]: where the terms of a sum lie.
  std::vector<float> term_weights_;    // As term_rows_.
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_EXPERT_MIXTURE_H_
