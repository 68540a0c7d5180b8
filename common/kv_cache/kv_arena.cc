#include "common/kv_cache/kv_arena.h"

#include <utility>

#include "absl/memory/memory.h"
#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Create(Device& device, const KvLayout& layout,
                                                         uint32_t block_count) {
  BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device.Allocate(layout.block_bytes() * block_count));
  return absl::WrapUnique(new KvArena(device, layout, block_count, std::move(memory)));
}

}  // namespace baton
