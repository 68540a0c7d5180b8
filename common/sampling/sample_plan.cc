#include "common/sampling/sample_plan.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/sampling/sampler.h"

namespace baton {
namespace {

// Calls apply(id, count) for each different token of `tokens`.
template <typename Apply>
void ForEachDistinct(std::span<const TokenId> tokens, const Apply& apply) {
  std::vector<TokenId> sorted(tokens.begin(), tokens.end());
  std::sort(sorted.begin(), sorted.end());
  for (size_t begin = 0; begin < sorted.size();) {
    size_t end = begin + 1;
    while (end < sorted.size() && sorted[end] == sorted[begin]) ++end;
    apply(sorted[begin], end - begin);
    begin = end;
  }
}

// Every change by itself, in the order in which they are made to any one token.
std::vector<LogitEdit> SingleEdits(std::span<const TokenId> tokens, std::span<const TokenId> output,
                                   const SamplingParams& params, const StopParams& stop) {
  std::vector<LogitEdit> edits;
  for (const auto& [id, bias] : params.logit_bias) {
    edits.push_back({.id = id, .bias = bias, .flags = kBiased});
  }
  if (params.repetition_penalty != 1.0f) {
    ForEachDistinct(tokens, [&](TokenId id, size_t /*count*/) {
      edits.push_back({.id = id, .repetition = params.repetition_penalty, .flags = kRepeated});
    });
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    ForEachDistinct(output, [&](TokenId id, size_t count) {
      edits.push_back({.id = id,
                       .frequency = params.frequency_penalty * static_cast<float>(count),
                       .presence = params.presence_penalty,
                       .flags = kPenalized});
    });
  }
  if (output.size() < stop.min_tokens) {
    for (const TokenId id : stop.stop_token_ids) edits.push_back({.id = id, .flags = kBarred});
  }
  return edits;
}

// Adds `next`, a single change, to `edit` if it comes after all that `edit` does to the same token.
bool Merge(const LogitEdit& next, LogitEdit& edit) {
  if (edit.id != next.id || edit.flags >= next.flags) return false;
  if (next.flags == kRepeated) edit.repetition = next.repetition;
  if (next.flags == kPenalized) {
    edit.frequency = next.frequency;
    edit.presence = next.presence;
  }
  edit.flags |= next.flags;
  return true;
}

}  // namespace

SamplePlan PlanSample(size_t vocab, std::span<const TokenId> tokens, uint32_t prompt_tokens,
                      const SamplingParams& params, const StopParams& stop, uint32_t sample_index) {
  BATON_CHECK(prompt_tokens <= tokens.size());
  std::vector<LogitEdit> single = SingleEdits(tokens, tokens.subspan(prompt_tokens), params, stop);
  std::erase_if(single, [vocab](const LogitEdit& edit) {
    return edit.id < 0 || static_cast<size_t>(edit.id) >= vocab;
  });
  std::stable_sort(single.begin(), single.end(),
                   [](const LogitEdit& a, const LogitEdit& b) { return a.id < b.id; });
  SamplePlan plan;
  for (const LogitEdit& edit : single) {
    if (plan.edits.empty() || !Merge(edit, plan.edits.back())) plan.edits.push_back(edit);
  }
  plan.row = {.temperature = params.temperature,
              .top_k = params.top_k,
              .top_p = params.top_p,
              .min_p = params.min_p,
              .u = UniformAt(params.seed, sample_index, static_cast<uint32_t>(tokens.size())),
              .edits_begin = 0,
              .edits_end = static_cast<uint32_t>(plan.edits.size())};
  return plan;
}

}  // namespace baton
