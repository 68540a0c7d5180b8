// A model whose next token is a hash of its whole context, read back from the KV cache: any wrong,
// missing or stale byte of KV changes the text. Deterministic and quick.
#ifndef BATON_COMMON_ENGINE_TESTING_FAKE_MODEL_H_
#define BATON_COMMON_ENGINE_TESTING_FAKE_MODEL_H_

#include <cstdint>
#include <memory>
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

  // Makes the next Forward fail with `status`.
  void FailNext(absl::Status status) { next_error_ = std::move(status); }

  KvLayout Layout(uint32_t block_tokens) const;

 private:
  void WriteRow(KvArena& cache, const BatchRow& row, uint32_t layer, uint32_t index) const;

  ModelConfig config_;
  std::string fingerprint_ = std::string(32, 'f');
  std::string numerics_ = "fake";
  absl::Status next_error_;
};

// What greedy decoding of the fake model gives after `prompt`: the oracle, without any cache.
std::vector<TokenId> FakeContinuation(std::vector<TokenId> prompt, uint32_t count,
                                      uint32_t vocab_size = 97, uint32_t window = 0);

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_TESTING_FAKE_MODEL_H_
