// A model whose next token is a hash of its whole context, read back from the KV cache: any wrong,
// missing or stale byte of KV changes the text. Deterministic and quick.
//
// It can be told to work as a device does that starts steps: then each of them is computed at once,
// or as late as it may be. Those who give blocks away too early, or look too late, are found out.
#ifndef BATON_COMMON_ENGINE_TESTING_FAKE_MODEL_H_
#define BATON_COMMON_ENGINE_TESTING_FAKE_MODEL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/kv_cache/kv_arena.h"
#include "common/model/model.h"

namespace baton {

class FakeModel final : public Model {
 public:
  static constexpr uint32_t kLayers = 3;
  static constexpr uint32_t kKvHeads = 2;
  static constexpr uint32_t kHeadDim = 4;

  // A token sees so many tokens, itself included; 0: all before it.
  explicit FakeModel(uint32_t vocab_size = 97, uint32_t context_tokens = 256, uint32_t window = 0);

  const ModelConfig& config() const override { return config_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  const std::string& numerics() const override { return numerics_; }
  uint64_t parameter_count() const override { return 1; }
  absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                       const LayerDone& layer_done) override;

  bool samples_tokens() const override { return starts_steps_; }
  absl::Status ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                const TokenChoice& choice, const LayerDone& layer_done) override;
  bool CanStart(size_t /*rows*/) const override { return starts_steps_; }
  absl::Status StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                         std::span<const SampleRow> samples,
                         std::span<const LogitEdit> edits) override;
  absl::Status FinishStep(std::span<TokenId> tokens) override;

  // It samples tokens itself from now on, and starts steps. `seed` draws when each is computed.
  void StartSteps(uint64_t seed) {
    starts_steps_ = true;
    draws_ = seed;
  }
  void StartNoSteps() { starts_steps_ = false; }
  uint64_t started_steps() const { return started_steps_; }

  // Makes the next Forward, or the next started step, fail with `status`.
  void FailNext(absl::Status status) { next_error_ = std::move(status); }

  KvLayout Layout(uint32_t block_tokens) const;

 private:
  struct StartedRow {
    TokenId token = 0;
    std::optional<uint32_t> chosen_by;
    uint32_t start = 0;
    std::vector<BlockId> blocks;
  };
  struct StartedStep {
    std::vector<StartedRow> rows;
    KvArena* cache = nullptr;
    std::vector<SampleRow> samples;
    std::vector<LogitEdit> edits;
    absl::Status status;
    std::vector<TokenId> tokens;
    bool done = false;
  };

  // All that were started and not computed, up to the number `count`.
  void ComputeStarted(size_t count);
  absl::Status Compute(StartedStep& step);
  absl::Status ForwardNow(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                          const LayerDone& layer_done);
  absl::Status SampleNow(std::span<const BatchRow> rows, KvArena& cache, const TokenChoice& choice,
                         const LayerDone& layer_done);
  void WriteRow(KvArena& cache, const BatchRow& row, uint32_t layer, uint32_t index) const;

  ModelConfig config_;
  std::string fingerprint_ = std::string(32, 'f');
  std::string numerics_ = "fake";
  absl::Status next_error_;
  bool starts_steps_ = false;
  uint64_t draws_ = 0;
  uint64_t started_steps_ = 0;
  std::deque<StartedStep> started_;  // Not finished.
  std::vector<TokenId> chosen_;      // By the last step that was computed.
};

// What greedy decoding of the fake model gives after `prompt`: the oracle, without any cache.
std::vector<TokenId> FakeContinuation(std::vector<TokenId> prompt, uint32_t count,
                                      uint32_t vocab_size = 97, uint32_t window = 0);

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_TESTING_FAKE_MODEL_H_
