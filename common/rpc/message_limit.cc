#include "common/rpc/message_limit.h"

#include <algorithm>
#include <limits>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"

ABSL_FLAG(baton::ByteSize, message_limit, baton::ByteSize{64 << 20},
          "The largest gRPC message accepted or sent.");

namespace baton {

int MessageBytesMaxFromFlags() {
  const uint64_t bytes = absl::GetFlag(FLAGS_message_limit).bytes;
  return static_cast<int>(std::min<uint64_t>(bytes, std::numeric_limits<int>::max()));
}

// The largest command is Admit or Prefill of a full context: a token takes up to 5 bytes, the other
// fields (logit bias, stop ids, addresses) stay within the overhead.
absl::Status CheckMessageLimit(uint32_t context_tokens, int message_bytes_max) {
  constexpr uint64_t kTokenBytes = 5;
  constexpr uint64_t kOverheadBytes = 128 << 10;
  const uint64_t needed = kTokenBytes * context_tokens + kOverheadBytes;
  if (static_cast<uint64_t>(message_bytes_max) >= needed) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--message_limit: ", message_bytes_max,
                                                 " bytes are too few for a context of ",
                                                 context_tokens, " tokens, which takes ", needed));
}

}  // namespace baton
