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

bool CountsOutput(const SamplingParams& params) {
  return params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
}

LogitEdit PenaltyOf(TokenId id, size_t count, const SamplingParams& params) {
  return {.id = id,
          .frequency = params.frequency_penalty * static_cast<float>(count),
          .presence = params.presence_penalty,
          .flags = kPenalized};
}

// Every change by itself, in the order in which they are made to any one token.
std::vector<LogitEdit> SingleEdits(std::span<const TokenId> tokens, std::span<const TokenId> output,
                                   const SamplingParams& params, const StopParams& stop,
                                   bool barred) {
  std::vector<LogitEdit> edits;
  for (const auto& [id, bias] : params.logit_bias) {
    edits.push_back({.id = id, .bias = bias, .flags = kBiased});
  }
  if (params.repetition_penalty != 1.0f) {
    ForEachDistinct(tokens, [&](TokenId id, size_t /*count*/) {
      edits.push_back({.id = id, .repetition = params.repetition_penalty, .flags = kRepeated});
    });
  }
  if (CountsOutput(params)) {
    ForEachDistinct(
        output, [&](TokenId id, size_t count) { edits.push_back(PenaltyOf(id, count, params)); });
  }
  if (barred) {
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

// Single changes become edits in their order.
void Append(const LogitEdit& single, std::vector<LogitEdit>& edits) {
  if (edits.empty() || !Merge(single, edits.back())) edits.push_back(single);
}

// Those of a token that has come up, `count` times of them in the output.
std::vector<LogitEdit> EditsOf(TokenId id, size_t count, const SamplingParams& params,
                               const StopParams& stop, bool barred) {
  std::vector<LogitEdit> edits;
  for (const auto& [biased, bias] : params.logit_bias) {
    if (biased == id) Append({.id = id, .bias = bias, .flags = kBiased}, edits);
  }
  if (params.repetition_penalty != 1.0f) {
    Append({.id = id, .repetition = params.repetition_penalty, .flags = kRepeated}, edits);
  }
  if (count > 0) Append(PenaltyOf(id, count, params), edits);
  for (const TokenId stop_id : stop.stop_token_ids) {
    if (barred && stop_id == id) Append({.id = id, .flags = kBarred}, edits);
  }
  return edits;
}

// `own`, the edits of one token, take the place of those it had among `edits`.
void Replace(std::span<const LogitEdit> own, std::vector<LogitEdit>& edits) {
  const auto by_id = [](const LogitEdit& a, const LogitEdit& b) { return a.id < b.id; };
  const auto [begin, end] = std::equal_range(edits.begin(), edits.end(), own.front(), by_id);
  // A token that comes up again loses none.
  const auto had = static_cast<size_t>(end - begin);
  BATON_CHECK(had <= own.size());
  std::copy_n(own.begin(), had, begin);
  edits.insert(end, own.begin() + static_cast<ptrdiff_t>(had), own.end());
}

// Of so many tokens; `single` as SingleEdits says.
SamplePlan PlanOf(size_t vocab, std::vector<LogitEdit> single, size_t token_count,
                  const SamplingParams& params, uint32_t sample_index) {
  std::erase_if(single, [vocab](const LogitEdit& edit) {
    return edit.id < 0 || static_cast<size_t>(edit.id) >= vocab;
  });
  std::stable_sort(single.begin(), single.end(),
                   [](const LogitEdit& a, const LogitEdit& b) { return a.id < b.id; });
  SamplePlan plan;
  for (const LogitEdit& edit : single) Append(edit, plan.edits);
  plan.row = {.temperature = params.temperature,
              .top_k = params.top_k,
              .top_p = params.top_p,
              .min_p = params.min_p,
              .u = UniformAt(params.seed, sample_index, static_cast<uint32_t>(token_count)),
              .edits_begin = 0,
              .edits_end = static_cast<uint32_t>(plan.edits.size())};
  return plan;
}

}  // namespace

SamplePlan PlanSample(size_t vocab, std::span<const TokenId> tokens, uint32_t prompt_tokens,
                      const SamplingParams& params, const StopParams& stop, uint32_t sample_index) {
  BATON_CHECK(prompt_tokens <= tokens.size());
  const std::span<const TokenId> output = tokens.subspan(prompt_tokens);
  const bool barred = output.size() < stop.min_tokens;
  return PlanOf(vocab, SingleEdits(tokens, output, params, stop, barred), tokens.size(), params,
                sample_index);
}

bool DisregardsTokens(const SamplingParams& params) {
  return params.repetition_penalty == 1.0f && !CountsOutput(params);
}

const SamplePlan& SamplePlanner::PlanAhead(size_t vocab, size_t token_count, uint32_t prompt_tokens,
                                           const SamplingParams& params, const StopParams& stop) {
  BATON_CHECK(DisregardsTokens(params));
  const size_t seen = std::exchange(planned_tokens_, token_count);
  const size_t barred_below = size_t{prompt_tokens} + stop.min_tokens;
  const bool barred = token_count < barred_below;
  if (seen == 0 || barred != (seen < barred_below)) {
    plan_ = PlanOf(vocab, SingleEdits({}, {}, params, stop, barred), token_count, params, 0);
  } else {
    plan_.row.u = UniformAt(params.seed, 0, static_cast<uint32_t>(token_count));
  }
  return plan_;
}

const SamplePlan& SamplePlanner::Plan(size_t vocab, std::span<const TokenId> tokens,
                                      uint32_t prompt_tokens, const SamplingParams& params,
                                      const StopParams& stop) {
  BATON_CHECK(prompt_tokens <= tokens.size());
  const size_t seen = std::exchange(planned_tokens_, tokens.size());
  const size_t barred_below = size_t{prompt_tokens} + stop.min_tokens;
  const bool barred = tokens.size() < barred_below;
  if (tokens.size() == seen && seen > 0) return plan_;
  if (tokens.size() != seen + 1 || seen == 0 || barred != (seen < barred_below)) {
    plan_ = PlanSample(vocab, tokens, prompt_tokens, params, stop);
    return plan_;
  }
  const TokenId id = tokens.back();
  const std::span<const TokenId> output = tokens.subspan(prompt_tokens);
  const auto count =
      CountsOutput(params) ? std::count(output.begin(), output.end(), id) : ptrdiff_t{0};
  const bool known = id >= 0 && static_cast<size_t>(id) < vocab;
  if (known && (count > 0 || params.repetition_penalty != 1.0f)) {
    Replace(EditsOf(id, static_cast<size_t>(count), params, stop, barred), plan_.edits);
  }
  plan_.row.u = UniformAt(params.seed, 0, static_cast<uint32_t>(tokens.size()));
  plan_.row.edits_end = static_cast<uint32_t>(plan_.edits.size());
  return plan_;
}

}  // namespace baton
