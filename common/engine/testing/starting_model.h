// A model that works as a device does that starts steps, over one that computes at once: each
// started step is computed at once, or as late as it may be. Who gives blocks away too early, or
// looks too early for what is in them, is found out.
#ifndef BATON_COMMON_ENGINE_TESTING_STARTING_MODEL_H_
#define BATON_COMMON_ENGINE_TESTING_STARTING_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/kv_cache/kv_arena.h"
#include "common/model/model.h"

namespace baton {

class StartingModel final : public Model {
 public:
  // Outlived by `model`. As that one until StartSteps.
  explicit StartingModel(Model* model) : model_(model) {}

  // From now on it samples tokens itself and starts steps; `seed` draws when each is computed.
  void StartSteps(uint64_t seed) {
    starts_steps_ = true;
    draws_ = seed;
  }
  void StartNoSteps() { starts_steps_ = false; }

  const ModelConfig& config() const override { return model_->config(); }
  const std::string& fingerprint() const override { return model_->fingerprint(); }
  const std::string& numerics() const override { return model_->numerics(); }
  uint64_t parameter_count() const override { return model_->parameter_count(); }
  absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                       const LayerDone& layer_done) override;
  bool samples_tokens() const override { return starts_steps_; }
  absl::Status ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                const TokenChoice& choice, const LayerDone& layer_done) override;
  bool CanStart(size_t rows) const override { return starts_steps_ && rows > 0; }
  absl::Status StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                         std::span<const SampleRow> samples,
                         std::span<const LogitEdit> edits) override;
  absl::Status FinishStep(std::span<TokenId> tokens) override;

 private:
  struct StartedRow {
    DecodeRow row;  // Without blocks.
    std::vector<BlockId> blocks;
  };
  struct StartedStep {
    std::vector<StartedRow> rows;
    KvArena* cache = nullptr;
    std::vector<SampleRow> samples;
    std::vector<LogitEdit> edits;
    std::vector<TokenId> tokens;         // Once it is computed.
    std::optional<absl::Status> status;  // Likewise.
  };

  void ComputeFirst(size_t count);
  absl::Status Compute(StartedStep& step);

  Model* const model_;
  bool starts_steps_ = false;
  uint64_t draws_ = 0;
  std::deque<StartedStep> started_;  // Not finished.
  std::vector<TokenId> chosen_;      // By the last step that was computed.
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_TESTING_STARTING_MODEL_H_
