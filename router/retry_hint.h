// When a client that found no room should ask again: the trailing metadata of RESOURCE_EXHAUSTED.
#ifndef BATON_ROUTER_RETRY_HINT_H_
#define BATON_ROUTER_RETRY_HINT_H_

#include <grpcpp/server_context.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace baton {

// For limits of the router's own, which a call leaves within moments.
inline constexpr uint32_t kRetryAfterMs = 1000;

// REQUIRES: the call has not been finished.
inline void AddRetryHint(uint32_t retry_after_ms, grpc::CallbackServerContext* context) {
  context->AddTrailingMetadata("retry-after-ms", absl::StrCat(retry_after_ms));
}

// The hint that a refusal with this status needs, if any.
inline void AddRetryHint(const absl::Status& refusal, grpc::CallbackServerContext* context) {
  if (absl::IsResourceExhausted(refusal)) AddRetryHint(kRetryAfterMs, context);
}

}  // namespace baton

#endif  // BATON_ROUTER_RETRY_HINT_H_
