// Whether KV on a GPU passes through memory of the GPU or of the host on its way to other workers.
#ifndef BATON_COMMON_KV_TRANSFER_STAGING_CHOICE_H_
#define BATON_COMMON_KV_TRANSFER_STAGING_CHOICE_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/transport/transport.h"

namespace baton {

struct ChosenStaging {
  TransferStaging staging;
  // Why it is pinned, if nobody asked for that: "this UCX moves no memory of GPUs, only host".
  std::string reason;
};

// `wanted` absent: memory of the GPUs, if the transport can send from there and receive into it,
// which is tried on each with a message to itself, for at most `trial`; otherwise pinned. `bytes`
// and errors as TransferStaging::Create's; if memory of the GPUs was wanted, also why it cannot be
// used. Before anybody else uses the transport.
absl::StatusOr<ChosenStaging> ChooseStaging(Transport& transport, const KvArena& arena,
                                            size_t bytes, std::optional<StagingMemory> wanted,
                                            Duration trial = std::chrono::seconds(5));

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_STAGING_CHOICE_H_
