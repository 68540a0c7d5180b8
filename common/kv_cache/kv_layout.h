// How the bytes of a KV block lie in memory and on the wire.
//
// A block holds `block_tokens` consecutive tokens of every layer:
//   [layer][K|V][kv_head][token] rows, see kv_row.h
// Two workers may pass blocks to each other only if their fingerprints are equal. A plain value.
#ifndef BATON_COMMON_KV_CACHE_KV_LAYOUT_H_
#define BATON_COMMON_KV_CACHE_KV_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "common/tensor/dtype.h"
#include "common/tensor/kv_row.h"

namespace baton {

struct KvLayout {
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t block_tokens = 16;
  DType dtype = DType::kF32;

  // Of one token of one head: what a copy moves at least.
  size_t row_bytes() const { return KvRowBytes(dtype, head_dim); }
  // Of one K or V plane of one head: [token] rows.
  size_t head_bytes() const { return row_bytes() * block_tokens; }
  // Of one layer: [K|V][kv_head][token] rows.
  size_t layer_bytes() const { return head_bytes() * kv_heads * 2; }
  size_t block_bytes() const { return layer_bytes() * layers; }
  // KV bytes of one token over all layers.
  size_t token_bytes() const { return row_bytes() * kv_heads * 2 * layers; }

  // Blocks that hold `tokens` tokens.
  uint32_t BlocksFor(uint32_t tokens) const { return (tokens + block_tokens - 1) / block_tokens; }

  // Where K (value = false) or V of a token lies inside its block. REQUIRES: all within range.
  size_t OffsetOf(uint32_t layer, bool value, uint32_t kv_head, uint32_t token_in_block) const {
    return layer * layer_bytes() + ((value ? kv_heads : 0) + kv_head) * head_bytes() +
           token_in_block * row_bytes();
  }

  // Equal for equal layouts; differs if any field does, or the order of the bytes ever changes.
  uint64_t Fingerprint() const;

  friend bool operator==(const KvLayout&, const KvLayout&) = default;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_KV_LAYOUT_H_
