// When a sequence of tokens is complete. Stop strings are the router's business: workers see
// tokens. A pure function.
#ifndef BATON_COMMON_SAMPLING_STOP_CRITERIA_H_
#define BATON_COMMON_SAMPLING_STOP_CRITERIA_H_

#include <cstdint>
#include <optional>
#include <span>

#include "common/base/ids.h"
#include "common/sampling/sampling_params.h"

namespace baton {

enum class FinishReason {
  kStop,    // A stop token was generated.
  kLength,  // There is no room for another token.
};

// Whether `tokens`, the first `prompt_tokens` of which are the prompt, end here; nothing while they
// go on. A stop token counts if it is the last one, was generated, and came after `min_tokens`
// others. If both reasons hold, it is kStop. `total_tokens_max` bounds prompt and output together.
std::optional<FinishReason> CheckStop(std::span<const TokenId> tokens, uint32_t prompt_tokens,
                                      uint32_t total_tokens_max, const StopParams& stop);

}  // namespace baton

#endif  // BATON_COMMON_SAMPLING_STOP_CRITERIA_H_
