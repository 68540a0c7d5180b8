// The flag --message_limit, alike in every program that sends or takes messages.
#ifndef BATON_COMMON_RPC_MESSAGE_LIMIT_H_
#define BATON_COMMON_RPC_MESSAGE_LIMIT_H_

#include <cstdint>

#include "absl/status/status.h"

namespace baton {

// The value of the flag. Main thread.
int MessageBytesMaxFromFlags();

// Whether the largest command between router and workers fits: a full context. kInvalidArgument,
// naming the flag, if not.
absl::Status CheckMessageLimit(uint32_t context_tokens, int message_bytes_max);

}  // namespace baton

#endif  // BATON_COMMON_RPC_MESSAGE_LIMIT_H_
