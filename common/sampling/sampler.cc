#include "common/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/base/check.h"
#include "common/base/deterministic_math.h"
#include "common/sampling/philox.h"

namespace baton {
namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();
constexpr float kHighest = std::numeric_limits<float>::max();

// A token that may still be drawn.
struct Candidate {
  float logit = kBarred;
  TokenId id = 0;
};

// The order of likelihood; ties go to the lower id. A strict total order: no logit is NaN.
bool Likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// NaN becomes a barred token and +infinity the largest number: differences of logits are never NaN.
void MakeComparable(std::span<float> logits) {
  for (float& logit : logits) {
    if (!(logit <= kHighest)) logit = logit > kHighest ? kHighest : kBarred;
  }
}

bool IsToken(TokenId id, std::span<const float> logits) {
  return id >= 0 && static_cast<size_t>(id) < logits.size();
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// log of the sum of e^logit, in double precision, relative to the highest logit.
struct LogSum {
  float highest = kBarred;
  double log_sum = 0.0;

  float LogProbability(float logit) const {
    if (highest == kBarred) return kBarred;  // No token is possible.
    return static_cast<float>(static_cast<double>(logit) - highest - log_sum);
  }
};

LogSum LogSumOf(std::span<const float> logits) {
  LogSum result;
  result.highest = logits[ArgMax(logits)];
  if (result.highest == kBarred) return result;
  double sum = 0.0;
  for (float logit : logits) sum += StableExp(logit - result.highest);
  result.log_sum = StableLog(sum);
  return result;
}

// The `count` likeliest tokens with their log-probabilities, likeliest first.
std::vector<std::pair<TokenId, float>> TopLogProbabilities(std::span<const float> logits,
                                                           const LogSum& sum, size_t count) {
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [logits](TokenId a, TokenId b) {
    return Likelier({logits[a], a}, {logits[b], b});
  });
  std::vector<std::pair<TokenId, float>> top;
  top.reserve(count);
  for (size_t i = 0; i < count; ++i) top.emplace_back(ids[i], sum.LogProbability(logits[ids[i]]));
  return top;
}

void ApplyBias(std::span<float> logits, const SamplingParams& params) {
  for (const auto& [id, bias] : params.logit_bias) {
    if (IsToken(id, logits)) logits[id] += bias;
  }
}

// Calls apply(id, count) for each different token of `tokens`.
template <typename Apply>
void ForEachDistinct(std::span<const TokenId> tokens, std::span<const float> logits,
                     const Apply& apply) {
  std::vector<TokenId> sorted(tokens.begin(), tokens.end());
  std::sort(sorted.begin(), sorted.end());
  for (size_t begin = 0; begin < sorted.size();) {
    size_t end = begin + 1;
    while (end < sorted.size() && sorted[end] == sorted[begin]) ++end;
    if (IsToken(sorted[begin], logits)) apply(sorted[begin], end - begin);
    begin = end;
  }
}

void ApplyPenalties(std::span<float> logits, std::span<const TokenId> tokens,
                    std::span<const TokenId> output, const SamplingParams& params) {
  if (params.repetition_penalty != 1.0f) {
    ForEachDistinct(tokens, logits, [&](TokenId id, size_t /*count*/) {
      float& logit = logits[id];
      logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    });
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    ForEachDistinct(output, logits, [&](TokenId id, size_t count) {
      logits[id] -= params.frequency_penalty * static_cast<float>(count);
      logits[id] -= params.presence_penalty;
    });
  }
}

void BarStopTokens(std::span<float> logits, const StopParams& stop) {
  for (TokenId id : stop.stop_token_ids) {
    if (IsToken(id, logits)) logits[id] = kBarred;
  }
}

// Every token that can be drawn at all, by id.
std::vector<Candidate> Possible(std::span<const float> logits) {
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] != kBarred) candidates.push_back({logits[id], static_cast<TokenId>(id)});
  }
  return candidates;
}

void KeepTopK(std::vector<Candidate>& candidates, uint32_t top_k) {
  if (top_k == 0 || top_k >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + top_k, candidates.end(), Likelier);
  candidates.resize(top_k);
}

// Keeps the fewest likeliest tokens whose probabilities sum to at least `top_p`, and one at least.
void KeepTopP(std::vector<Candidate>& candidates, float top_p, float highest) {
  if (top_p >= 1.0f) return;
  double total = 0.0;
  for (const Candidate& candidate : candidates) total += StableExp(candidate.logit - highest);
  // A heap gives the likeliest one after another without sorting the rest of the vocabulary.
  const auto less_likely = [](const Candidate& a, const Candidate& b) { return Likelier(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), less_likely);
  const double wanted = static_cast<double>(top_p) * total;
  double sum = 0.0;
  size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || sum < wanted)) {
    const auto heap_end = candidates.end() - static_cast<ptrdiff_t>(kept);
    std::pop_heap(candidates.begin(), heap_end, less_likely);
    ++kept;
    sum += StableExp(candidates[candidates.size() - kept].logit - highest);
  }
  candidates.erase(candidates.begin(), candidates.end() - static_cast<ptrdiff_t>(kept));
}

// Keeps tokens that are at least `min_p` times as likely as the likeliest.
void KeepMinP(std::vector<Candidate>& candidates, float min_p, float highest) {
  if (min_p <= 0.0f) return;
  std::erase_if(candidates, [&](const Candidate& candidate) {
    return candidate.logit != highest && StableExp(candidate.logit - highest) < min_p;
  });
}

// Draws one of the candidates, in the order of their ids, with the random number u in [0, 1).
TokenId Draw(std::vector<Candidate>& candidates, float highest, float u) {
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  // In order already, unless most were dropped: the whole vocabulary is never sorted.
  if (!std::is_sorted(candidates.begin(), candidates.end(), by_id)) {
    std::sort(candidates.begin(), candidates.end(), by_id);
  }
  std::vector<float> weights(candidates.size());
  double total = 0.0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    weights[i] = StableExp(candidates[i].logit - highest);
    total += weights[i];
  }
  const double target = static_cast<double>(u) * total;
  double sum = 0.0;
  TokenId last_possible = candidates.front().id;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (weights[i] == 0.0f) continue;
    sum += weights[i];
    last_possible = candidates[i].id;
    if (sum > target) break;
  }
  return last_possible;
}

// Divides the distance from the highest logit, so that a tiny temperature bars tokens and never
// makes two of them equal by overflow.
void ApplyTemperature(std::span<float> logits, float temperature) {
  const float highest = logits[ArgMax(logits)];
  if (temperature == 1.0f || highest == kBarred) return;
  for (float& logit : logits) logit = (logit - highest) / temperature;
}

TokenId Choose(std::span<float> logits, const SamplingParams& params, float u) {
  if (params.temperature <= 0.0f) return ArgMax(logits);
  ApplyTemperature(logits, params.temperature);
  std::vector<Candidate> candidates = Possible(logits);
  if (candidates.empty()) return 0;
  KeepTopK(candidates, params.top_k);
  const float highest = std::min_element(candidates.begin(), candidates.end(), Likelier)->logit;
  KeepTopP(candidates, params.top_p, highest);
  KeepMinP(candidates, params.min_p, highest);
  return Draw(candidates, highest, u);
}

}  // namespace

SampledToken Sample(std::span<float> logits, std::span<const TokenId> tokens,
                    uint32_t prompt_tokens, const SamplingParams& params, const StopParams& stop,
                    uint32_t sample_index) {
  BATON_CHECK(!logits.empty());
  BATON_CHECK(prompt_tokens <= tokens.size());
  MakeComparable(logits);
  SampledToken sampled;
  LogSum raw_sum;
  std::vector<float> raw;  // Kept only if the chosen token's probability is wanted.
  if (params.logprobs.has_value()) {
    raw.assign(logits.begin(), logits.end());
    raw_sum = LogSumOf(raw);
    sampled.top_logprobs = TopLogProbabilities(raw, raw_sum, *params.logprobs);
  }
  const std::span<const TokenId> output = tokens.subspan(prompt_tokens);
  ApplyBias(logits, params);
  MakeComparable(logits);
  ApplyPenalties(logits, tokens, output, params);
  if (output.size() < stop.min_tokens) BarStopTokens(logits, stop);
  MakeComparable(logits);
  const float u = UniformAt(params.seed, sample_index, static_cast<uint32_t>(tokens.size()));
  sampled.id = Choose(logits, params, u);
  if (params.logprobs.has_value()) sampled.logprob = raw_sum.LogProbability(raw[sampled.id]);
  return sampled;
}

float UniformAt(uint64_t seed, uint32_t sample_index, uint32_t position) {
  const std::array<uint32_t, 4> random =
      Philox4x32({position, sample_index, 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<float>(random[0] >> 8) * 0x1p-24f;
}

}  // namespace baton
