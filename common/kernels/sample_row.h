// How the token of one row of logits is chosen, as plain values, and what is done to a single
// logit: what Sample() of common/sampling and its twin on a GPU have in common, so that both choose
// the same token. common/sampling/sample_plan.h makes the values of a request.
#ifndef BATON_COMMON_KERNELS_SAMPLE_ROW_H_
#define BATON_COMMON_KERNELS_SAMPLE_ROW_H_

#include <cstdint>
#include <limits>

#include "common/base/deterministic_math.h"
#include "common/base/ids.h"

namespace baton {

// What a LogitEdit changes, in the order in which it does.
constexpr uint32_t kBiased = 1;
constexpr uint32_t kRepeated = 2;
constexpr uint32_t kPenalized = 4;
constexpr uint32_t kBarred = 8;

// A change to the logit of one token. After each step the logit is made comparable.
struct LogitEdit {
  TokenId id = 0;
  float bias = 0.0f;        // kBiased: added first.
  float repetition = 1.0f;  // kRepeated: then divides a logit above zero, multiplies any other.
  float frequency = 0.0f;   // kPenalized: then subtracted (frequency penalty times count),
  float presence = 0.0f;    // and then this.
  uint32_t flags = 0;       // Which of them are made. kBarred: at last it becomes -infinity.
};

struct SampleRow {
  float temperature = 0.0f;  // 0: the highest logit.
  uint32_t top_k = 0;        // 0: all.
  float top_p = 1.0f;
  float min_p = 0.0f;
  float u = 0.0f;  // UniformAt(seed, sample_index, position).
  // Its edits. Those of one token stand together and are made one after the other: a bias that is
  // given twice is added twice.
  uint32_t edits_begin = 0;
  uint32_t edits_end = 0;
};

// NaN becomes a barred token and +infinity the largest number: differences of logits are never NaN.
constexpr float Comparable(float logit) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  return logit <= kLargest  ? logit
         : logit > kLargest ? kLargest
                            : -std::numeric_limits<float>::infinity();
}

// `logit` is comparable.
constexpr float Edited(float logit, const LogitEdit& edit) {
  if (edit.flags & kBiased) logit = Comparable(logit + edit.bias);
  if (edit.flags & kRepeated) {
    logit = Comparable(logit > 0.0f ? logit / edit.repetition : logit * edit.repetition);
  }
  if (edit.flags & kPenalized) logit = Comparable((logit - edit.frequency) - edit.presence);
  return edit.flags & kBarred ? -std::numeric_limits<float>::infinity() : logit;
}

// Probabilities in fixed point: multiples of 2^-30 of the likeliest token's. Integers have the same
// sum in any order. A token without weight cannot be drawn; what is below 2^-30 is lost, far under
// the 24 random bits of a draw.
constexpr uint32_t kWeightOfLikeliest = 1u << 30;

constexpr uint32_t WeightOf(float logit, float highest, float temperature) {
  const float probability = StableExp((logit - highest) / temperature);
  return static_cast<uint32_t>(
      static_cast<int32_t>(probability * static_cast<float>(kWeightOfLikeliest)));
}

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_SAMPLE_ROW_H_
