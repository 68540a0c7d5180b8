// What one of several ranks has of a model: its share of the heads and of the networks' inner rows
// (Shoeybi et al., Megatron-LM, 2019). See "Tensor parallelism" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_MODEL_SHARD_H_
#define BATON_COMMON_MODEL_SHARD_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/model/model_config.h"

namespace baton {

// A plain value; by default the one rank that has all.
struct Shard {
  uint32_t rank = 0;
  uint32_t count = 1;

  // Of `all` rows: where the rank's begin, and how many they are. REQUIRES: `count` divides `all`.
  size_t Begin(size_t all) const { return rank * Size(all); }
  size_t Size(size_t all) const { return all / count; }

  // The same of a vocabulary, which `count` need not divide. Shares begin where matrices of any
  // type are aligned; the last ones of a small vocabulary may be empty.
  size_t VocabBegin(size_t vocab) const { return VocabBegin(vocab, rank); }
  size_t VocabSize(size_t vocab) const { return VocabBegin(vocab, rank + 1) - VocabBegin(vocab); }

 private:
  static constexpr size_t kVocabMultiple = 64;
  size_t VocabBegin(size_t vocab, uint32_t of_rank) const {
    const size_t multiples = (vocab + kVocabMultiple - 1) / kVocabMultiple;
    const size_t of_each = (multiples + count - 1) / count;
    return std::min(vocab, of_rank * of_each * kVocabMultiple);
  }
};

// The configuration of what each of `count` ranks computes: the model's, with fewer heads and
// smaller networks. kInvalidArgument: "--tp 3 does not divide the model's 8 KV heads".
absl::StatusOr<ModelConfig> ConfigOfShard(const ModelConfig& config, uint32_t count);

}  // namespace baton

#endif  // BATON_COMMON_MODEL_SHARD_H_
