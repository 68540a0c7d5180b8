// Runs one engine step: a ragged batch of prefill chunks and decode rows through the model, then
// samples.
//
// With a model that starts steps, a decode step is begun while the one before it runs: the device
// goes from one to the next without waiting for the host. See "A step ahead" in DESIGN_NOTES.md.
//
// Engine thread only. Keeps its buffers between steps.
#ifndef BATON_COMMON_ENGINE_EXECUTOR_H_
#define BATON_COMMON_ENGINE_EXECUTOR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
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
  // Asked while a step runs: what the one after it may begin with, one token each. Of sequences in
  // the running step, whose blocks already cover one more token, and others that run. None: the
  // step after it waits for the tokens of this one.
  using PlanAhead = std::function<std::vector<StepItem>()>;
  using Sampled = std::vector<std::optional<SampledToken>>;

  // A row of a step that was started. `arrival` as in Sequence: no other of this engine has it.
  struct StartedRow {
    RequestKey key;
    uint64_t arrival = 0;
  };

  // Both outlive the executor.
  Executor(Model* model, KvArena* arena) : model_(model), arena_(arena) {}

  // Computes all items in one forward pass. An item that leaves no token pending samples the next
  // one, which is appended to its sequence; the others get nullopt. On an error no sequence has
  // changed, and no step is started.
  //
  // With `ahead`, the step after this one may have been started when it returns; there is no
  // `layer_done` then. REQUIRES: if so, the next call's items are sequences of started(), one token
  // each, and what is known of them has not changed since this call returned; those that are left
  // out are forgotten.
  absl::StatusOr<Sampled> Run(std::span<const StepItem> items, const LayerDone& layer_done,
                              const PlanAhead& ahead = nullptr);

  // The rows of the step that was started and not run. The device may still read their blocks, and
  // write the token after those that were computed. Empty: there is none.
  std::span<const StartedRow> started() const;
  bool IsStarted(const Sequence& sequence) const { return StartedRowOf(sequence).has_value(); }
  // Waits until the device has done the step that was started, if there is one. Its tokens are
  // kept.
  void Settle();
  // The same, and forgets it.
  void Forget();

  const Model& model() const { return *model_; }
  const KvArena& arena() const { return *arena_; }

 private:
  // Edits of a step: 6 MiB. A penalty makes one for each different token of a sequence.
  static constexpr size_t kEditsMax = size_t{1} << 18;

  struct Started {
    std::vector<StartedRow> rows;
    absl::flat_hash_map<uint64_t, uint32_t> row_of;  // By arrival.
    std::optional<absl::Status> finished;            // Once it was waited for.
    std::vector<TokenId> tokens;                     // [rows], then.
  };

  // All that a step needs to be started, but for edits_.
  struct Draft {
    Started step;
    std::vector<DecodeRow> rows;
    std::vector<SampleRow> samples;
  };

  // A step of these behind the last one that was started; nullopt if it cannot be started now.
  std::optional<Draft> DraftStep(std::span<const StepItem> items);
  bool CanStart(const Sequence& sequence) const;
  // The row of the last step that was started, if the sequence is in it.
  std::optional<uint32_t> StartedRowOf(const Sequence& sequence) const;
  // On an error nothing is started.
  absl::Status Start(Draft draft);
  void Finish(Started& step);
  // Of the step that was started first; starts another one meanwhile.
  absl::StatusOr<Sampled> RunStarted(std::span<const StepItem> items, const PlanAhead& ahead);
  // Of each row that wants one. The model chooses itself. The logits of those alone come to the
  // host that ask for log-probabilities, or change so many logits that the host had better do it.
  absl::StatusOr<std::vector<SampledToken>> RunSampling(std::span<const BatchRow> rows,
                                                        std::span<Sequence* const> sampling,
                                                        const LayerDone& layer_done);
  // Of the sequence's next token.
  const SamplePlan& PlanOf(Sequence& sequence) const;
  // Adds the plan's to edits_, as the row says then. False: there is no room, and the row has none.
  bool AppendEdits(const SamplePlan& plan, SampleRow& row);
  // The same as RunSampling from logits that all come to the host.
  absl::StatusOr<std::vector<SampledToken>> RunWithLogits(std::span<const BatchRow> rows,
                                                          std::span<Sequence* const> sampling,
                                                          const LayerDone& layer_done);

  Model* const model_;
  KvArena* const arena_;
  std::deque<Started> started_;  // At most two, and no more than one between calls.
  // Of the step in hand.
  std::vector<float> logits_;
  std::vector<LogitEdit> edits_;
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_EXECUTOR_H_
