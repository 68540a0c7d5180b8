// The forward pass of GPT-2, of Llama and its relatives (Gemma, Mistral, Phi-3, Qwen), and of
// mixtures of experts: one decoder, whose configuration says where they differ. See model.h for the
// promises.
#ifndef BATON_COMMON_MODEL_DECODER_H_
#define BATON_COMMON_MODEL_DECODER_H_

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/collective/collective.h"
#include "common/kernels/kernels.h"
#include "common/model/expert_mixture.h"
#include "common/model/model.h"
#include "common/model/rope_angles.h"
#include "common/model/weights.h"

namespace baton {

class Decoder final : public Model {
 public:
  // As Model::Load. With a collective, which outlives the decoder, it is one rank of a model: the
  // ranks' decoders run the same calls, each with its own shard of the weights and of the cache.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(Device& device, const ModelOptions& options,
                                                       Collective* collective = nullptr);
  // Allocates the scratch memory for batches of `batch_tokens_max`. The device outlives the
  // decoder. `config` and `weights` are of the rank's shard.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(Device& device, const ModelConfig& config,
                                                         std::unique_ptr<ModelWeights> weights,
                                                         std::unique_ptr<KernelContext> context,
                                                         uint32_t batch_tokens_max,
                                                         std::string fingerprint,
                                                         Collective* collective = nullptr);

  // Of the shard, if it is one.
  const ModelConfig& config() const override { return config_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  const std::string& numerics() const override { return numerics_; }
  uint64_t parameter_count() const override { return weights_->parameter_count(); }
  DType activations() const override { return context_->activations(); }

  absl::Status Reserve(const KvArena& cache, uint32_t sequences_max) override;
  absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                       const LayerDone& layer_done) override;
  absl::Status Health() const override { return context_->Health(); }
  // Steps that the device did as it had recorded them.
  uint64_t replayed_steps() const { return context_->replays(); }
  bool samples_tokens() const override { return CanSampleTokens(*context_, config_.vocab_size); }
  absl::Status ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                const TokenChoice& choice, const LayerDone& layer_done) override;
  uint32_t PaddedRows(uint32_t rows) const override { return context_->PaddedRows(rows); }
  bool CanStart(size_t rows) const override;
  absl::Status StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                         std::span<const SampleRow> samples,
                         std::span<const LogitEdit> edits) override;
  absl::Status FinishStep(std::span<TokenId> tokens) override;

  // The rows of a step, as those of a call that does not know it.
  static std::vector<BatchRow> RowsOf(std::span<const DecodeRow> rows);
  // What these calls refuse before they do anything. `logit_rows`: that there is room for.
  absl::Status CheckCall(std::span<const BatchRow> rows, const KvArena& cache,
                         size_t logit_rows) const;
  // The part in such a call of a rank that is not the first: without logits.
  absl::Status RunBeside(std::span<const BatchRow> rows, KvArena& cache,
                         const LayerDone& layer_done);
  // A rank's part in StartStep, after CheckCall. The first chooses the tokens, and the others have
  // no samples; FinishStep gives the tokens to all.
  absl::Status StartPart(std::span<const DecodeRow> rows, KvArena& cache,
                         std::span<const SampleRow> samples, std::span<const LogitEdit> edits);
  // Waits for all that the device was given.
  absl::Status AwaitDevice() { return context_->Finish(); }

 private:
  // The rows of a call in the form that kernels want. Host memory.
  struct Batch {
    std::vector<TokenId> tokens;
    std::vector<SequenceRows> sequences;
    // The same for those tokens alone that want logits: rows count only these.
    std::vector<SequenceRows> logit_sequences;
    std::vector<uint32_t> logit_rows;  // Where they are in `tokens`.
    std::vector<TokenId> positions;    // Only if they are learned.
  };
  // The same where the device finds it.
  struct Step {
    Placed<TokenId> ids;
    Placed<TokenId> positions;  // Only if they are learned.
    PlacedSequences sequences;
    Placed<uint32_t> logit_rows;
    PlacedSequences logit_sequences;
    // Some tokens do not want logits.
    bool narrow = false;
  };
  // Of config.rope or config.local_rope.
  struct Rotation {
    TensorView cosines;  // [tokens, dim / 2]
    TensorView sines;    // As cosines.
  };
  // Scratch tensors, cut to the number of tokens in hand. Of the context's type of activations, but
  // for x and rotations.
  struct Activations {
    TensorView x;          // [tokens, hidden]: the residual stream.
    TensorView narrow_x;   // As x: of the tokens that want logits, if not all do.
    TensorView h;          // [tokens, hidden]
    TensorView q;          // [tokens, heads * head_dim]
    TensorView attention;  // As q.
    TensorView k;          // [tokens, kv_heads * head_dim]
    TensorView v;          // As k.
    TensorView gate;       // [tokens, intermediate]
    TensorView up;         // As gate.
    Rotation rotation;
    Rotation local_rotation;  // Empty if no layer needs it.
  };

  Decoder(Device& device, const ModelConfig& config, std::unique_ptr<ModelWeights> weights,
          std::unique_ptr<KernelContext> context, uint32_t batch_tokens_max,
          std::string fingerprint, Collective* collective);

  uint32_t rank() const { return collective_ == nullptr ? 0 : collective_->rank(); }
  // REQUIRES: there is a collective.
  Shard ShardOf(uint32_t rank) const { return {rank, collective_->size()}; }
  absl::Status AllocateScratch();
  absl::Status CheckRow(const BatchRow& row, const KvArena& cache) const;
  static Batch PrepareBatch(std::span<const BatchRow> rows, uint32_t block_tokens);
  // With a shape the batch is filled up to its rows.
  Step PlaceBatch(Batch& batch, const std::optional<StepShape>& shape);
  // Whether the host need only queue a step of one token for each of so many sequences.
  bool RunsOnDevice(size_t rows) const;
  // The shape of a step of one token for each sequence, to which it is filled up.
  std::optional<StepShape> ShapeOf(std::span<const BatchRow> rows, const KvArena& cache,
                                   const LayerDone& layer_done) const;
  // Runs a step that has been placed; the device may record one that has a shape.
  absl::Status RunStep(const std::optional<StepShape>& shape,
                       absl::FunctionRef<absl::Status()> body);
  void FillAngles(const Step& step, const Activations& all);
  Activations Cut(size_t tokens) const;
  // Runs the rows, and calls `take` with each piece of the logits: rows [begin, begin + count) of
  // them are the first of logits_.
  using TakeLogits = absl::FunctionRef<absl::Status(size_t begin, size_t count)>;
  absl::Status Run(std::span<const BatchRow> rows, KvArena& cache, const LayerDone& layer_done,
                   TakeLogits take);
  // The tokens of so many rows of logits_: on all ranks, and on their way to the host.
  absl::Status ChooseTokens(size_t rows, const Placed<SampleRow>& samples,
                            const Placed<LogitEdit>& edits);
  // Those raw logits of `choice` that are in this piece.
  absl::Status TakeRawLogits(const TokenChoice& choice, size_t begin, size_t count);
  // All layers. What wants logits is left in the first rows of h, normalized.
  absl::Status RunLayers(const Step& step, KvArena& cache, Activations all,
                         const LayerDone& layer_done);
  // Keys, values and queries of layer `index`, from h; keys and values go to `pages`.
  void RunQkv(uint32_t index, const Step& step, const KvPages& pages, const Activations& part);
  // x = the tokens' embeddings.
  void Embed(const Step& step, const Activations& all);
  AttentionOptions AttentionOf(uint32_t index) const;
  void Normalize(const ConstTensorView& x, const NormWeights& norm, const TensorView& out);
  // Attention's output and the feed-forward network, added to the residual stream, which is
  // normalized into h for the next layer, or for the head.
  absl::Status RunRest(uint32_t index, const PlacedSequences& sequences, const KvPages& pages,
                       const Activations& part);
  // h = the sum of the ranks' h.
  absl::Status SumOverRanks(const TensorView& h);
  // x += h, which is normalized first if there is a norm for it; then h = `next` of x.
  void AddAndNormalize(const ConstTensorView& output_norm, const NormWeights& next,
                       const Activations& part);
  // h = the feed-forward network's output for h.
  absl::Status RunNetwork(const LayerWeights& layer, const PlacedSequences& sequences,
                          const Activations& part);
  void RunGated(const LayerWeights& layer, const Activations& part);
  void RunPlain(const LayerWeights& layer, const Activations& part);
  // Reduces to the tokens that want logits.
  Activations Narrow(const Step& step, const Activations& all);
  // logits_ = the logits of so many rows of h; on the first rank, with the help of the others.
  absl::Status RunHead(const TensorView& h);
  // out = the logits of the rank's share of the vocabulary.
  void RunOwnHead(const TensorView& h, const TensorView& out);
  absl::Status RunDividedHead(const TensorView& h, const TensorView& out);
  // Within logit_parts_: on the first rank those of all ranks, elsewhere its own.
  std::vector<TensorView> LogitParts(size_t rows) const;

  Device& device_;
  const ModelConfig config_;
  const std::unique_ptr<ModelWeights> weights_;
  const std::unique_ptr<KernelContext> context_;
  Collective* const collective_;  // Null: there is one rank.
  const uint32_t batch_tokens_max_;
  const std::string fingerprint_;
  const std::string numerics_;
  const RopeAngles angles_;
  const RopeAngles local_angles_;

  std::vector<DeviceMemory> memory_;        // Behind the tensors.
  TensorView frequencies_;                  // Of angles_, on the device.
  TensorView local_frequencies_;            // Of local_angles_.
  Activations scratch_;                     // For batch_tokens_max_ tokens.
  TensorView logits_;                       // [some rows, vocab]; no columns but on rank 0.
  TensorView logit_parts_;                  // Shares of it, one after the other: LogitParts.
  std::unique_ptr<ExpertMixture> experts_;  // Null if no layer has any.
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_DECODER_H_
