// What the tests of this folder share: small arenas with recognizable bytes, and recorded events.
#ifndef BATON_COMMON_KV_TRANSFER_HANDOFF_RIG_H_
#define BATON_COMMON_KV_TRANSFER_HANDOFF_RIG_H_

#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <variant>
#include <vector>

#include "common/device/device.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_event.h"

namespace baton {

// 3 layers, grouped-query attention with 2 KV heads.
inline KvLayout SmallLayout() {
  return {.layers = 3, .kv_heads = 2, .head_dim = 8, .block_tokens = 4, .dtype = DType::kBF16};
}

// Memory for blocks, and its device.
struct ArenaRig {
  explicit ArenaRig(const KvLayout& layout, uint32_t block_count)
      : device(MakeHostDevice()), arena(KvArena::Create(*device, layout, block_count).value()) {}

  size_t bytes() const { return arena->layout().block_bytes() * arena->block_count(); }
  void FillRandomly(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::byte* data = arena->BlockData(BlockId{0});
    for (size_t i = 0; i < bytes(); ++i) data[i] = static_cast<std::byte>(random());
  }
  void Fill(std::byte value) {
    std::memset(arena->BlockData(BlockId{0}), static_cast<int>(value), bytes());
  }
  std::vector<std::byte> Copy() const {
    const std::byte* data = arena->BlockData(BlockId{0});
    return {data, data + bytes()};
  }

  std::unique_ptr<Device> device;
  std::unique_ptr<KvArena> arena;
};

inline std::vector<BlockId> Blocks(std::initializer_list<uint32_t> numbers) {
  std::vector<BlockId> blocks;
  for (const uint32_t number : numbers) blocks.push_back(BlockId{number});
  return blocks;
}

// Whether K and V of all layers and heads of one token are equal on both sides.
inline bool TokenIsEqual(const KvArena& a, const std::vector<BlockId>& blocks_a, const KvArena& b,
                         const std::vector<BlockId>& blocks_b, uint32_t token) {
  const KvLayout& layout = a.layout();
  const uint32_t block = token / layout.block_tokens, row = token % layout.block_tokens;
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (const bool value : {false, true}) {
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        if (std::memcmp(a.RowData(blocks_a[block], layer, value, head, row),
                        b.RowData(blocks_b[block], layer, value, head, row),
                        layout.row_bytes()) != 0) {
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

#endif  // BATON_COMMON_KV_TRANSFER_HANDOFF_RIG_H_
