// Chooses the next token from logits: a pure function of (logits, tokens so far, parameters,
// position).
//
// Randomness is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011): the number drawn for a position is a function of (seed, sample index, position), so a
// request that is replayed on another worker continues with the same tokens, and no sampler state
// is ever transferred.
#ifndef BATON_COMMON_SAMPLING_SAMPLER_H_
#define BATON_COMMON_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "common/sampling/sampling_params.h"

namespace baton {

struct SamplePlan;

struct SampledToken {
  TokenId id = 0;
  float logprob = 0.0f;                                 // Set if log-probabilities are asked for.
  std::vector<std::pair<TokenId, float>> top_logprobs;  // Likeliest first.
};

// `logits` [vocab] is scratch: overwritten. `tokens` are the prompt and all generated tokens so
// far, the first `prompt_tokens` of which are the prompt; the new token's position is
// tokens.size(). Order: log-probabilities of raw logits, bias, penalties, stop tokens barred below
// min_tokens, temperature, top-k, top-p, min-p, draw. Ties go to the lower id.
SampledToken Sample(std::span<float> logits, std::span<const TokenId> tokens,
                    uint32_t prompt_tokens, const SamplingParams& params, const StopParams& stop,
                    uint32_t sample_index = 0);
// The same where the plan has been made (sample_plan.h). `logprobs` as in SamplingParams. REQUIRES:
// the plan is for a vocabulary of logits.size().
SampledToken Sample(std::span<float> logits, const SamplePlan& plan,
                    std::optional<uint32_t> logprobs);

// Gives `token` its log-probability and those of the `top` likeliest. `logits` [vocab] are those
// before any edit, and scratch.
void AddLogProbabilities(std::span<float> logits, uint32_t top, SampledToken* token);

// Uniform in [0, 1) with 24 random bits: Philox4x32-10 of (seed, sample index, position).
float UniformAt(uint64_t seed, uint32_t sample_index, uint32_t position);

}  // namespace baton

#endif  // BATON_COMMON_SAMPLING_SAMPLER_H_
