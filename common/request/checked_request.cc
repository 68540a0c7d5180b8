#include "common/request/checked_request.h"

#include <algorithm>

namespace baton {

void CheckedRequest::LimitOpenEnded(uint32_t kv_tokens) {
  if (!open_ended || kv_tokens <= tokens.size()) return;
  total_tokens_max = std::min(total_tokens_max, kv_tokens);
}

bool CheckedRequest::is_stop_token(TokenId token) const {
  const auto& ids = stopping.stop_token_ids();
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

std::optional<v1::FinishReason> CheckedRequest::end_reached() const {
  if (tokens.size() > prompt_tokens && is_stop_token(tokens.back())) {
    return v1::FINISH_REASON_STOP;
  }
  if (tokens.size() >= total_tokens_max) return v1::FINISH_REASON_LENGTH;
  return std::nullopt;
}

}  // namespace baton
