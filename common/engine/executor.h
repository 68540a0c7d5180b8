// Runs one engine step: a ragged batch of prefill chunks and decode rows through the model, then
// samples.
//
// Engine thread only. Keeps its buffers between steps.
#ifndef BATON_COMMON_ENGINE_EXECUTOR_H_
#define BATON_COMMON_ENGINE_EXECUTOR_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/engine/sequence.h"
#include "common/kv_cache/kv_arena.h"
#include "common/model/model.h"
#include "common/sampling/sampler.h"

namespace baton {

// Compute the next `count` pending tokens of a sequence whose blocks cover them.
struct StepItem {
  Sequence* sequence = nullptr;
  uint32_t count = 0;
};

class Executor {
 public:
  // `layer_done(layer)`: K and V of all tokens of the step are in the cache for that layer.
  using LayerDone = Model::LayerDone;

  // Both outlive the executor.
  Executor(Model* model, KvArena* arena) : model_(model), arena_(arena) {}

  // Computes all items in one forward pass. An item that leaves no token pending samples the next
  // one, which is appended to its sequence; the others get nullopt. On an error no sequence has
  // changed.
  absl::StatusOr<std::vector<std::optional<SampledToken>>> Run(std::span<const StepItem> items,
                                                               const LayerDone& layer_done);

  const Model& model() const { return *model_; }
  const KvArena& arena() const { return *arena_; }

 private:
  // Of each row that wants one. The model chooses itself. The logits of those alone come to the
  // host that ask for log-probabilities, or change so many logits that the host had better do it.
  absl::StatusOr<std::vector<SampledToken>> RunSampling(std::span<const BatchRow> rows,
                                                        std::span<Sequence* const> sampling,
                                                        const LayerDone& layer_done);
  // The same from logits that all come to the host.
  absl::StatusOr<std::vector<SampledToken>> RunWithLogits(std::span<const BatchRow> rows,
                                                          std::span<Sequence* const> sampling,
                                                          const LayerDone& layer_done);

  Model* const model_;
  KvArena* const arena_;
  // Of the step in hand.
  std::vector<float> logits_;
  std::vector<LogitEdit> edits_;
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_EXECUTOR_H_
