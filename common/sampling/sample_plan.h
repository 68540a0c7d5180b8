// What a request's options do to one row of logits, worked out before the logits are there: plain
// values that Sample() follows on the host and SampleTokens() of common/kernels/cuda on a GPU.
#ifndef BATON_COMMON_SAMPLING_SAMPLE_PLAN_H_
#define BATON_COMMON_SAMPLING_SAMPLE_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/ids.h"
#include "common/kernels/sample_row.h"
#include "common/sampling/sampling_params.h"

namespace baton {

struct SamplePlan {
  SampleRow row;                 // All of `edits`: [0, edits.size()).
  std::vector<LogitEdit> edits;  // By id.
};

// For a vocabulary of `vocab` tokens; ids outside of it are ignored. The other arguments are those
// of Sample().
SamplePlan PlanSample(size_t vocab, std::span<const TokenId> tokens, uint32_t prompt_tokens,
                      const SamplingParams& params, const StopParams& stop,
                      uint32_t sample_index = 0);

// Whether the plans of such a request depend on how many tokens there are, and not on which.
bool DisregardsTokens(const SamplingParams& params);

// The plans of one sequence, token after token. They are those of PlanSample, which sorts all
// tokens each time; here one new token is brought into the last plan. Any one thread.
class SamplePlanner {
 public:
  // REQUIRES: `tokens` begin with those of the call before, or are fewer; the other arguments are
  // the same.
  // The plan is good until the next call.
  const SamplePlan& Plan(size_t vocab, std::span<const TokenId> tokens, uint32_t prompt_tokens,
                         const SamplingParams& params, const StopParams& stop);
  // The same when there will be `token_count` tokens, of which the last ones are not known yet.
  // REQUIRES: DisregardsTokens(params).
  const SamplePlan& PlanAhead(size_t vocab, size_t token_count, uint32_t prompt_tokens,
                              const SamplingParams& params, const StopParams& stop);

 private:
  SamplePlan plan_;
  size_t planned_tokens_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_SAMPLING_SAMPLE_PLAN_H_
