// What a handoff is about: the ticket that P gets, the grant behind it at D, the token that rides
// in the commit. Plain values.
#ifndef BATON_COMMON_KV_TRANSFER_TICKET_H_
#define BATON_COMMON_KV_TRANSFER_TICKET_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace baton {

// Fences mistakes, not attackers: a message from an older life of a worker does not know it.
struct Nonce {
  uint64_t high = 0;
  uint64_t low = 0;

  friend bool operator==(const Nonce&, const Nonce&) = default;
};

// D's promise of blocks as given to P.
struct Ticket {
  std::string address;        // D's TransferAgent::address(): opaque bytes.
  Incarnation incarnation{};  // Of D.
  LeaseId lease{};
  Nonce nonce;
  Epoch epoch{};
  uint32_t held_tokens = 0;    // Leading tokens whose KV D has: whole blocks, < prompt_tokens.
  uint32_t prompt_tokens = 0;  // Tokens whose KV the lease takes.
  uint64_t layout_fingerprint = 0;
  // KV heads that D has on each of its devices, the first ones on the first: a message has heads of
  // one of them, to where it is copied in one go. 0: all heads are on one.
  uint32_t shard_heads = 0;
};

// D's side of one ticket: where the KV of tokens [held_tokens, prompt_tokens) may land.
struct LeaseGrant {
  LeaseId lease{};
  Nonce nonce;
  Epoch epoch{};
  // Cover tokens [0, prompt_tokens), in order. Those of the held tokens are never written.
  std::vector<BlockId> blocks;
  uint32_t held_tokens = 0;  // A multiple of block_tokens, < prompt_tokens.
  uint32_t prompt_tokens = 0;
};

// Which part of a sequence's KV this sender pushes. A prefill worker of one process pushes all.
struct TransferShare {
  static constexpr uint32_t kRankCountMax = 1024;

  uint32_t rank = 0;
  uint32_t rank_count = 1;
  uint32_t head_begin = 0;
  uint32_t head_end = 0;  // 0: all heads of the layout.
};

// `begin` to `end`, exclusive.
struct IndexRange {
  uint32_t begin = 0;
  uint32_t end = 0;

  uint32_t count() const { return end - begin; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

// The first token, as P sampled it.
struct CommittedToken {
  // Bounds `logprobs`, which travels in a message header.
  static constexpr size_t kLogprobBytesMax = 512;

  TokenId token = 0;
  uint32_t index = 0;    // Number of generated tokens before it.
  std::string logprobs;  // Opaque to the transfer; P's encoding, D's decoding.

  friend bool operator==(const CommittedToken&, const CommittedToken&) = default;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_TICKET_H_
