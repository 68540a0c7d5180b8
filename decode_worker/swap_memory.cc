#include "decode_worker/swap_memory.h"

#include <utility>

#include "common/telemetry/log.h"

namespace baton {
namespace {

constexpr uint64_t kBytesWithGpu = uint64_t{4} << 30;

}  // namespace

absl::StatusOr<std::unique_ptr<SwapSpace>> MakeSwapSpace(const KvArena& arena,
                                                         std::optional<uint64_t> asked_bytes) {
  const bool gpu = arena.device().kind() == DeviceKind::kCuda;
  const uint64_t bytes = asked_bytes.value_or(gpu ? kBytesWithGpu : 0);
  if (bytes == 0) return nullptr;
  absl::StatusOr<std::unique_ptr<SwapSpace>> swap =
      ExplainMemory(SwapSpace::Create(arena, bytes), "a swap space",
                    "a smaller --swap_memory needs less, and 0 none");
  if (swap.ok()) {
    LogInfo("swap space", {{"kv_blocks", (*swap)->blocks_total()}});
  } else if (!asked_bytes.has_value()) {
    LogWarning("no swap space: preempted sequences will be computed again",
               {{"bytes", bytes}, {"error", swap.status()}});
    return nullptr;
  }
  return swap;
}

}  // namespace baton
