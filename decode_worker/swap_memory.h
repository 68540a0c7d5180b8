// The host memory of a decode worker for KV of sequences that must give way.
#ifndef BATON_DECODE_WORKER_SWAP_MEMORY_H_
#define BATON_DECODE_WORKER_SWAP_MEMORY_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_cache/swap_space.h"

namespace baton {

// Of the size that was asked for, 0 for none; if nothing was said, 4 GiB with a GPU, and none on
// the CPU, whose --kv_memory is the same memory. Null: none. A swap space that nobody asked for may
// fail, with a warning in the log: it is faster than to compute again, and not needed.
absl::StatusOr<std::unique_ptr<SwapSpace>> MakeSwapSpace(const KvArena& arena,
                                                         std::optional<uint64_t> asked_bytes);

}  // namespace baton

#endif  // BATON_DECODE_WORKER_SWAP_MEMORY_H_
