// How a request wants its tokens chosen and when it ends: plain values, checked by the router.
#ifndef BATON_COMMON_SAMPLING_SAMPLING_PARAMS_H_
#define BATON_COMMON_SAMPLING_SAMPLING_PARAMS_H_

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/ids.h"

namespace baton {

inline constexpr uint32_t kLogprobsMax = 20;

struct SamplingParams {
  float temperature = 1.0f;  // 0 is greedy.
  uint32_t top_k = 0;        // 0 keeps all.
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // Over prompt and output (Keskar et al., CTRL, 2019).
  float presence_penalty = 0.0f;    // Over output.
  float frequency_penalty = 0.0f;   // Over output.
  std::vector<std::pair<TokenId, float>> logit_bias = {};
  uint64_t seed = 0;
  std::optional<uint32_t> logprobs = {};  // Of the chosen token and the top n.
};

struct StopParams {
  std::vector<TokenId> stop_token_ids = {};  // EOS among them unless it is to be ignored.
  uint32_t min_tokens = 0;  // No stop token is sampled before so many generated tokens.
};

}  // namespace baton

#endif  // BATON_COMMON_SAMPLING_SAMPLING_PARAMS_H_
