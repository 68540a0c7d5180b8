// What the tests of this folder share: small arenas with recognizable bytes, and recorded events.
#ifndef BATON_COMMON_KV_TRANSFER_TESTING_HANDOFF_RIG_H_
#define BATON_COMMON_KV_TRANSFER_TESTING_HANDOFF_RIG_H_

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/check.h"
#include "common/device/device.h"
#include "common/device/testing/guarded_device.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_event.h"

namespace baton {

// 3 layers, grouped-query attention with 2 KV heads.
inline KvLayout SmallLayout() {
  return {.layers = 3, .kv_heads = 2, .head_dim = 8, .block_tokens = 4, .dtype = DType::kBF16};
}

// Where the blocks of a test lie: where the host reads them, or where it crashes if it does. The
// transport reaches the last kind (see InprocNetwork::CopyWith).
enum class Memory { kHost, kGuarded, kGuardedReached };

inline std::string MemoryName(Memory memory) {
  return memory == Memory::kHost ? "Host" : memory == Memory::kGuarded ? "Guarded" : "Reached";
}

inline StagingMemory StagingOf(Memory memory) {
  return memory == Memory::kGuardedReached ? StagingMemory::kDevice : StagingMemory::kPinned;
}

// Memory for blocks, its device, and what KV passes through on its way out or in.
struct ArenaRig {
  explicit ArenaRig(const KvLayout& layout, uint32_t block_count, Memory memory = Memory::kHost,
                    size_t staging_bytes = size_t{1} << 16)
      : device(memory == Memory::kHost ? MakeHostDevice() : std::make_unique<GuardedDevice>()),
        arena(KvArena::Create(*device, layout, block_count).value()),
        staging(KvStaging::Create(*arena, staging_bytes, StagingOf(memory)).value()) {}

  size_t bytes() const { return arena->layout().block_bytes() * arena->block_count(); }
  void FillRandomly(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> data(bytes());
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    Write(data);
  }
  void Fill(std::byte value) { Write(std::vector<std::byte>(bytes(), value)); }
  void Write(const std::vector<std::byte>& data) {
    BATON_CHECK_OK(device->CopyFromHost(arena->BlockData(BlockId{0}), data.data(), data.size()));
  }
  std::vector<std::byte> Copy() const {
    std::vector<std::byte> data(bytes());
    BATON_CHECK_OK(device->CopyToHost(data.data(), arena->BlockData(BlockId{0}), data.size()));
    return data;
  }

  std::unique_ptr<Device> device;
  std::unique_ptr<KvArena> arena;
  std::unique_ptr<KvStaging> staging;
};

inline std::vector<BlockId> Blocks(std::initializer_list<uint32_t> numbers) {
  std::vector<BlockId> blocks;
  for (const uint32_t number : numbers) blocks.push_back(BlockId{number});
  return blocks;
}

inline std::vector<std::byte> RowOf(const KvArena& arena, BlockId block, uint32_t layer, bool value,
                                    uint32_t head, uint32_t row) {
  std::vector<std::byte> bytes(arena.layout().row_bytes());
  const std::byte* const data = arena.RowData(block, layer, value, head, row);
  BATON_CHECK_OK(arena.device(arena.ShardOf(data)).CopyToHost(bytes.data(), data, bytes.size()));
  return bytes;
}

// Whether K and V of all layers and heads of one token are equal on both sides.
inline bool TokenIsEqual(const KvArena& a, const std::vector<BlockId>& blocks_a, const KvArena& b,
                         const std::vector<BlockId>& blocks_b, uint32_t token) {
  const KvLayout& layout = a.layout();
  const uint32_t block = token / layout.block_tokens, row = token % layout.block_tokens;
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (const bool value : {false, true}) {
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        if (RowOf(a, blocks_a[block], layer, value, head, row) !=
            RowOf(b, blocks_b[block], layer, value, head, row)) {
          return false;
        }
      }
    }
  }
  return true;
}

// Keeps the events that a sink was given.
class EventLog {
 public:
  TransferEventSink Sink() {
    return [this](TransferEvent event) { events_.push_back(std::move(event)); };
  }
  const std::vector<TransferEvent>& all() const { return events_; }
  template <typename Event>
  std::vector<Event> Of() const {
    std::vector<Event> found;
    for (const TransferEvent& event : events_) {
      if (const auto* match = std::get_if<Event>(&event)) found.push_back(*match);
    }
    return found;
  }
  template <typename Event>
  size_t Count() const {
    return Of<Event>().size();
  }

 private:
  std::vector<TransferEvent> events_;
};

inline Ticket TicketFor(const LeaseGrant& grant, const KvLayout& layout,
                        const std::string& address) {
  Ticket ticket;
  ticket.address = address;
  ticket.incarnation = Incarnation{1};
  ticket.lease = grant.lease;
  ticket.nonce = grant.nonce;
  ticket.epoch = grant.epoch;
  ticket.held_tokens = grant.held_tokens;
  ticket.prompt_tokens = grant.prompt_tokens;
  ticket.layout_fingerprint = layout.Fingerprint();
  return ticket;
}

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_TESTING_HANDOFF_RIG_H_
