#include "common/sampling/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/base/check.h"
#include "common/base/deterministic_math.h"
#include "common/sampling/philox.h"
#include "common/sampling/sample_plan.h"

namespace baton {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// A token and what it is ranked by.
struct Candidate {
  float logit = kLowest;
  TokenId id = 0;
};

// The order of likelihood; ties go to the lower id. A strict total order: no logit is NaN.
bool Likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Loops over the whole vocabulary, of 128k entries or more, are written so that they become vector
// code: over lanes, and without branches.
constexpr size_t kLanes = 16;

float Highest(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(kLowest);
  size_t id = 0;
  for (; id + kLanes <= logits.size(); id += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = logits[id + lane] > lanes[lane] ? logits[id + lane] : lanes[lane];
    }
  }
  float highest = *std::max_element(lanes.begin(), lanes.end());
  for (; id < logits.size(); ++id) highest = std::max(highest, logits[id]);
  return highest;
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::find(logits.begin(), logits.end(), Highest(logits)) -
                              logits.begin());
}

// The `count` likeliest tokens, in no order. Takes time in proportion to the vocabulary.
std::vector<Candidate> Likeliest(std::span<const float> logits, size_t count) {
  std::vector<Candidate> kept;
  if (count == 0) return kept;
  kept.reserve(2 * std::min(count, logits.size()));
  const auto drop_rest = [&kept, count] {
    std::nth_element(kept.begin(), kept.begin() + static_cast<ptrdiff_t>(count - 1), kept.end(),
                     Likelier);
    kept.resize(count);
  };
  // Below it a logit is not among the likeliest. An equal one has a higher id.
  float threshold = kLowest;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] <= threshold && kept.size() >= count) continue;
    kept.push_back({logits[id], static_cast<TokenId>(id)});
    if (kept.size() < 2 * count) continue;
    drop_rest();
    threshold = kept.back().logit;
  }
  if (kept.size() > count) drop_rest();
  return kept;
}

// log of the sum of e^logit, in double precision, relative to the highest logit.
struct LogSum {
  float highest = kLowest;
  double log_sum = 0.0;

  float LogProbability(float logit) const {
    if (highest == kLowest) return kLowest;  // No token is possible.
    return static_cast<float>(static_cast<double>(logit) - highest - log_sum);
  }
};

LogSum LogSumOf(std::span<const float> logits) {
  LogSum result;
  result.highest = Highest(logits);
  if (result.highest == kLowest) return result;
  std::array<double, kLanes> lanes = {};
  size_t id = 0;
  for (; id + kLanes <= logits.size(); id += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += StableExp(logits[id + lane] - result.highest);
    }
  }
  double sum = std::accumulate(lanes.begin(), lanes.end(), 0.0);
  for (; id < logits.size(); ++id) sum += StableExp(logits[id] - result.highest);
  result.log_sum = StableLog(sum);
  return result;
}

// The `count` likeliest tokens with their log-probabilities, likeliest first.
std::vector<std::pair<TokenId, float>> TopLogProbabilities(std::span<const float> logits,
                                                           const LogSum& sum, size_t count) {
  std::vector<Candidate> likeliest = Likeliest(logits, count);
  std::sort(likeliest.begin(), likeliest.end(), Likelier);
  std::vector<std::pair<TokenId, float>> top;
  top.reserve(likeliest.size());
  for (const Candidate& token : likeliest) {
    top.emplace_back(token.id, sum.LogProbability(token.logit));
  }
  return top;
}

using Weights = std::vector<uint32_t>;  // By id.

Weights WeightsOf(std::span<const float> logits, float highest, float temperature) {
  Weights weights(logits.size());
  for (size_t id = 0; id < logits.size(); ++id) {
    weights[id] = WeightOf(logits[id], highest, temperature);
  }
  return weights;
}

uint64_t Sum(std::span<const uint32_t> weights) {
  return std::accumulate(weights.begin(), weights.end(), uint64_t{0});
}

// Bars every token that is less likely than `last`.
void DropBehind(const Candidate& last, std::span<const float> logits, Weights& weights) {
  for (size_t id = 0; id < logits.size(); ++id) {
    const bool kept = logits[id] > last.logit ||
                      (logits[id] == last.logit && static_cast<TokenId>(id) <= last.id);
    weights[id] = kept ? weights[id] : 0;
  }
}

void KeepTopK(uint32_t top_k, std::span<const float> logits, Weights& weights) {
  if (top_k == 0 || top_k >= logits.size()) return;
  const std::vector<Candidate> kept = Likeliest(logits, top_k);
  DropBehind(*std::max_element(kept.begin(), kept.end(), Likelier), logits, weights);
}

// The last of the fewest likeliest candidates whose weights sum to at least `wanted`, which is at
// least 1 and at most the sum of all: by halves, without sorting them.
Candidate LastOfNucleus(std::span<Candidate> candidates, const Weights& weights, uint64_t wanted) {
  while (candidates.size() > 1) {
    const size_t half = candidates.size() / 2;
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(half),
                     candidates.end(), Likelier);
    uint64_t likelier = 0;
    for (const Candidate& token : candidates.first(half)) likelier += weights[token.id];
    if (likelier >= wanted) {
      candidates = candidates.first(half);
    } else {
      candidates = candidates.subspan(half);
      wanted -= likelier;
    }
  }
  return candidates.front();
}

// Keeps the fewest likeliest tokens whose probabilities sum to at least `top_p`, and one at least
// (Holtzman et al., "The curious case of neural text degeneration", 2020).
void KeepTopP(float top_p, std::span<const float> logits, Weights& weights) {
  if (top_p >= 1.0f) return;
  // Sums over classes of nearly equal weight, likelier tokens in higher ones: a float's exponent
  // and four bits behind it.
  const auto class_of = [](uint32_t weight) {
    return std::bit_cast<uint32_t>(static_cast<float>(weight)) >> 19;
  };
  std::vector<uint64_t> sums(class_of(kWeightOfLikeliest) + 1);
  for (const uint32_t weight : weights) sums[class_of(weight)] += weight;
  const auto total = static_cast<double>(std::accumulate(sums.begin(), sums.end(), uint64_t{0}));
  auto wanted = std::max<uint64_t>(1, static_cast<uint64_t>(static_cast<double>(top_p) * total));
  uint32_t last_class = class_of(kWeightOfLikeliest);
  while (sums[last_class] < wanted) wanted -= sums[last_class--];
  std::vector<Candidate> candidates;
  for (size_t id = 0; id < weights.size(); ++id) {
    if (class_of(weights[id]) == last_class) {
      candidates.push_back({logits[id], static_cast<TokenId>(id)});
    }
  }
  DropBehind(LastOfNucleus(candidates, weights, wanted), logits, weights);
}

// Keeps tokens that are at least `min_p` times as likely as the likeliest (Nguyen et al., "Turning
// up the heat: min-p sampling", 2024).
void KeepMinP(float min_p, Weights& weights) {
  const auto least =
      static_cast<uint32_t>(std::ceil(min_p * static_cast<float>(kWeightOfLikeliest)));
  for (uint32_t& weight : weights) weight = weight >= least ? weight : 0;
}

// The token at the fraction u, in [0, 1), of the sum of the weights, which is not zero.
TokenId Draw(std::span<const uint32_t> weights, float u) {
  const auto target =
      static_cast<uint64_t>(static_cast<double>(u) * static_cast<double>(Sum(weights)));
  uint64_t sum = 0;
  size_t id = 0;
  while ((sum += weights[id]) <= target) ++id;
  return static_cast<TokenId>(id);
}

void MakeComparable(std::span<float> logits) {
  for (float& logit : logits) logit = Comparable(logit);
}

TokenId Choose(std::span<const float> logits, const SampleRow& row) {
  const float highest = Highest(logits);
  // With no token possible: some token, always the same.
  if (row.temperature <= 0.0f || highest == kLowest) return ArgMax(logits);
  Weights weights = WeightsOf(logits, highest, row.temperature);
  KeepTopK(row.top_k, logits, weights);
  KeepTopP(row.top_p, logits, weights);
  KeepMinP(row.min_p, weights);
  return Draw(weights, row.u);
}

}  // namespace

SampledToken Sample(std::span<float> logits, std::span<const TokenId> tokens,
                    uint32_t prompt_tokens, const SamplingParams& params, const StopParams& stop,
                    uint32_t sample_index) {
  return Sample(logits,
                PlanSample(logits.size(), tokens, prompt_tokens, params, stop, sample_index),
                params.logprobs);
}

SampledToken Sample(std::span<float> logits, const SamplePlan& plan,
                    std::optional<uint32_t> logprobs) {
  BATON_CHECK(!logits.empty());
  BATON_CHECK(plan.edits.empty() ||
              static_cast<size_t>(plan.edits.back().id) < logits.size());  // By id.
  std::vector<float> raw;
  if (logprobs.has_value()) raw.assign(logits.begin(), logits.end());
  MakeComparable(logits);
  for (const LogitEdit& edit : plan.edits) logits[edit.id] = Edited(logits[edit.id], edit);
  SampledToken sampled;
  sampled.id = Choose(logits, plan.row);
  if (logprobs.has_value()) AddLogProbabilities(raw, *logprobs, &sampled);
  return sampled;
}

void AddLogProbabilities(std::span<float> logits, uint32_t top, SampledToken* token) {
  MakeComparable(logits);
  const LogSum sum = LogSumOf(logits);
  token->top_logprobs = TopLogProbabilities(logits, sum, top);
  token->logprob = sum.LogProbability(logits[static_cast<size_t>(token->id)]);
}

float UniformAt(uint64_t seed, uint32_t sample_index, uint32_t position) {
  const std::array<uint32_t, 4> random =
      Philox4x32({position, sample_index, 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<float>(random[0] >> 8) * 0x1p-24f;
}

}  // namespace baton
