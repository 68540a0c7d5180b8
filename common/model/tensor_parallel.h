// A model that several devices of one process compute together: a decoder, a thread and a shard of
// the weights and of the KV cache for each (Shoeybi et al., Megatron-LM, 2019). See "Tensor
// parallelism" in DESIGN_NOTES.md.
//
// The caller's thread is that of the first rank, which gives logits and tokens. A rank that fails
// ends the group: the call returns its error, and so does every later one.
#ifndef BATON_COMMON_MODEL_TENSOR_PARALLEL_H_
#define BATON_COMMON_MODEL_TENSOR_PARALLEL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/collective/collective.h"
#include "common/model/decoder.h"
#include "common/model/model.h"

namespace baton {

class TensorParallelModel final : public Model {
 public:
  // As Model::Load; the kernel threads are divided among the ranks. kInvalidArgument: the model
  // cannot be divided so.
  static absl::StatusOr<std::unique_ptr<TensorParallelModel>> Load(std::span<Device* const> devices,
                                                                   const ModelOptions& options);
  ~TensorParallelModel() override;

  const ModelConfig& config() const override { return config_; }
  const std::string& fingerprint() const override { return first().fingerprint(); }
  // "bf16/cpu-2/tp2": sums are split elsewhere than on one device.
  const std::string& numerics() const override { return numerics_; }
  uint64_t parameter_count() const override { return first().parameter_count(); }
  DType activations() const override { return first().activations(); }

  absl::Status Reserve(const KvArena& cache, uint32_t sequences_max) override;
  // The cache has a shard per rank. `layer_done` is called when all ranks have the layer.
  absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                       const LayerDone& layer_done) override;
  // A rank that has failed ends the group.
  absl::Status Health() const override;
  bool samples_tokens() const override { return first().samples_tokens(); }
  absl::Status ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                const TokenChoice& choice, const LayerDone& layer_done) override;
  uint32_t PaddedRows(uint32_t rows) const override { return first().PaddedRows(rows); }
  bool CanStart(size_t rows) const override { return first().CanStart(rows); }
  absl::Status StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                         std::span<const SampleRow> samples,
                         std::span<const LogitEdit> edits) override;
  absl::Status FinishStep(std::span<TokenId> tokens) override;

 private:
  // Members are destroyed in reverse order.
  struct Rank {
    std::unique_ptr<Collective> collective;
    std::unique_ptr<Decoder> decoder;
    absl::Status status;  // Of the call in hand, once it has ended here.
    // Layers of the call in hand whose K and V are in the rank's shard.
    std::atomic<uint32_t> layers = 0;
    std::thread thread;  // None on the first rank.
  };
  // A rank's part of a call. `layer_done` is null if nobody asks.
  using Part = absl::FunctionRef<absl::Status(Decoder& decoder, const LayerDone& layer_done)>;
  // The part of all ranks but the first. Borrowed for the duration of a call.
  struct Call {
    const Part* part = nullptr;
    bool reports_layers = false;
  };

  explicit TensorParallelModel(std::vector<std::unique_ptr<Collective>> collectives);
  absl::Status LoadRanks(std::span<Device* const> devices, const ModelOptions& options);
  void RankMain(Rank& rank);
  // All parts at once. After an error no device does anything more.
  absl::Status Run(Part first_part, Part other_part, const LayerDone& layer_done = nullptr);
  // Returns when all other ranks have the layer too, or will never have it: false.
  bool AwaitLayer(uint32_t layer) const;
  // The rank has ended its part, with its status.
  void End(Rank& rank);
  absl::Status FirstError() const;

  const Decoder& first() const { return *ranks_[0]->decoder; }

  ModelConfig config_;
  std::string numerics_;
  std::vector<std::unique_ptr<Rank>> ranks_;

  Call call_;  // Written while no rank runs.
  std::atomic<uint32_t> calls_ = 0;
  std::atomic<uint32_t> running_ = 0;  // Other ranks that have not ended the call.
  std::atomic<bool> failed_ = false;
  std::atomic<bool> stopping_ = false;
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_TENSOR_PARALLEL_H_
