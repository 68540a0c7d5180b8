// Pieces of a sequence's KV: their bytes in memory, in wire order, and which of them are there.
//
// The wire order of a piece is block by block in token order, and within a block as the block lies
// in memory: [layer][K|V][kv_head][token][head_dim], without what the piece leaves out. Both sides
// have the same layout, so both derive the same order from the piece's ranges.
#ifndef BATON_COMMON_KV_TRANSFER_KV_PIECES_H_
#define BATON_COMMON_KV_TRANSFER_KV_PIECES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/base/ids.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_cache/kv_layout.h"
#include "common/kv_transfer/handoff_codec.h"
#include "common/transport/transport.h"

struct XXH3_state_s;

namespace baton {

// Whether the piece lies within the layout and `tokens`.
bool PieceFits(const KvLayout& layout, const IndexRange& tokens, const KvPiece& piece);

// REQUIRES: PieceFits.
uint64_t PieceBytes(const KvLayout& layout, const KvPiece& piece);

// The piece's bytes in wire order, neighbours in memory joined. `blocks` hold the sequence's tokens
// from 0 on. REQUIRES: PieceFits, and blocks for all its tokens.
std::vector<MutableSpan> PieceSpans(const KvArena& arena, std::span<const BlockId> blocks,
                                    const KvPiece& piece);

// XXH3-64 of bytes that come one after the other.
class RunningChecksum {
 public:
  RunningChecksum();

  void Add(const std::byte* data, size_t bytes);
  uint64_t Get() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  const std::unique_ptr<XXH3_state_s, Free> state_;
};

// The same of bytes that are there.
uint64_t ChecksumOf(std::span<const MutableSpan> spans);

// Splits K and V of `layers` x `tokens` x `heads` into pieces of at most `bytes_max` each, as far
// as one layer of one block allows, and of a bounded number of spans.
std::vector<KvPiece> SplitPush(const KvLayout& layout, const KvPiece& push, size_t bytes_max);

// Which (layer, head, token) of a box are taken. A plain value.
class KvCoverage {
 public:
  KvCoverage(const KvLayout& layout, const IndexRange& tokens);

  // Takes the piece, or nothing and returns false if any of it was taken before.
  // REQUIRES: PieceFits(layout, tokens, piece).
  bool Claim(const KvPiece& piece);

  // (layer, head, token) triples of a piece, and of the box.
  static uint64_t CellsOf(const KvPiece& piece);
  uint64_t cells() const;

 private:
  std::vector<IndexRange>& Taken(uint32_t layer, uint32_t head) {
    return taken_[size_t{layer} * heads_ + head];
  }

  const uint32_t heads_;
  const IndexRange tokens_;
  std::vector<std::vector<IndexRange>> taken_;  // [layer][head], ascending and apart.
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_KV_PIECES_H_
