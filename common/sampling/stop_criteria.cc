#include "common/sampling/stop_criteria.h"

#include <algorithm>

namespace baton {

std::optional<FinishReason> CheckStop(std::span<const TokenId> tokens, uint32_t prompt_tokens,
                                      uint32_t total_tokens_max, const StopParams& stop) {
  const size_t generated = tokens.size() > prompt_tokens ? tokens.size() - prompt_tokens : 0;
  if (generated > stop.min_tokens &&
      std::find(stop.stop_token_ids.begin(), stop.stop_token_ids.end(), tokens.back()) !=
          stop.stop_token_ids.end()) {
    return FinishReason::kStop;
  }
  if (tokens.size() >= total_tokens_max) return FinishReason::kLength;
  return std::nullopt;
}

}  // namespace baton
