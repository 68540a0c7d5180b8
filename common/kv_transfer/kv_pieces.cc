#include "common/kv_transfer/kv_pieces.h"

#include <xxhash.h>

#include <algorithm>

namespace baton {
namespace {

// Of one message: bounds the gather and scatter lists.
constexpr uint64_t kSpansMax = 4096;

void Append(std::vector<MutableSpan>& spans, std::byte* data, size_t bytes) {
  if (!spans.empty() && spans.back().data() + spans.back().size() == data) {
    spans.back() = MutableSpan(spans.back().data(), spans.back().size() + bytes);
  } else {
    spans.emplace_back(data, bytes);
  }
}

// The part of a piece that lies in one block: `tokens` count from the block's first.
void AppendBlock(const KvArena& arena, BlockId block, const KvPiece& piece,
                 const IndexRange& tokens, std::vector<MutableSpan>& spans) {
  const KvLayout& layout = arena.layout();
  if (arena.shard_count() == 1 && tokens.count() == layout.block_tokens &&
      piece.heads.count() == layout.kv_heads) {
    Append(spans, arena.RowData(block, piece.layers.begin, false, 0, 0),
           piece.layers.count() * layout.layer_bytes());
    return;
  }
  for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
    for (const bool value : {false, true}) {
      for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
        Append(spans, arena.RowData(block, layer, value, head, tokens.begin),
               tokens.count() * layout.row_bytes());
      }
    }
  }
}

bool Within(const IndexRange& range, const IndexRange& bounds) {
  return bounds.begin <= range.begin && range.begin < range.end && range.end <= bounds.end;
}

}  // namespace

bool PieceFits(const KvLayout& layout, const IndexRange& tokens, const KvPiece& piece) {
  return Within(piece.layers, {0, layout.layers}) && Within(piece.heads, {0, layout.kv_heads}) &&
         Within(piece.tokens, tokens);
}

uint64_t PieceBytes(const KvLayout& layout, const KvPiece& piece) {
  return KvCoverage::CellsOf(piece) * 2 * layout.row_bytes();
}

std::vector<MutableSpan> PieceSpans(const KvArena& arena, std::span<const BlockId> blocks,
                                    const KvPiece& piece) {
  const uint32_t block_tokens = arena.layout().block_tokens;
  std::vector<MutableSpan> spans;
  for (uint32_t token = piece.tokens.begin; token < piece.tokens.end;) {
    const uint32_t block = token / block_tokens;
    const uint32_t begin = token % block_tokens;
    const uint32_t count = std::min(block_tokens - begin, piece.tokens.end - token);
    AppendBlock(arena, blocks[block], piece, {begin, begin + count}, spans);
    token += count;
  }
  return spans;
}

void RunningChecksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

RunningChecksum::RunningChecksum() : state_(XXH3_createState()) { XXH3_64bits_reset(state_.get()); }

void RunningChecksum::Add(const std::byte* data, size_t bytes) {
  XXH3_64bits_update(state_.get(), data, bytes);
}

uint64_t RunningChecksum::Get() const { return XXH3_64bits_digest(state_.get()); }

uint64_t ChecksumOf(std::span<const MutableSpan> spans) {
  if (spans.size() == 1) return XXH3_64bits(spans[0].data(), spans[0].size());
  RunningChecksum checksum;
  for (const MutableSpan& span : spans) checksum.Add(span.data(), span.size());
  return checksum.Get();
}

std::vector<KvPiece> SplitPush(const KvLayout& layout, const KvPiece& push, size_t bytes_max) {
  // A unit is one layer of one block. In a part of a block each head is a span of its own.
  const uint64_t unit_bytes = uint64_t{push.heads.count()} * 2 * layout.head_bytes();
  const uint64_t unit_spans = uint64_t{push.heads.count()} * 2;
  const uint64_t units =
      std::max<uint64_t>(1, std::min<uint64_t>(bytes_max / unit_bytes, kSpansMax / unit_spans));
  const uint32_t first_block = push.tokens.begin / layout.block_tokens;
  const uint32_t end_block = layout.BlocksFor(push.tokens.end);
  const uint64_t blocks = end_block - first_block;
  const auto layers_each =
      static_cast<uint32_t>(std::clamp<uint64_t>(units / blocks, 1, push.layers.count()));
  const auto blocks_each = static_cast<uint32_t>(std::min<uint64_t>(units, blocks));

  std::vector<KvPiece> pieces;
  for (uint32_t layer = push.layers.begin; layer < push.layers.end; layer += layers_each) {
    const IndexRange layers = {layer, std::min(layer + layers_each, push.layers.end)};
    for (uint32_t block = first_block; block < end_block; block += blocks_each) {
      const IndexRange tokens = {
          std::max(push.tokens.begin, block * layout.block_tokens),
          std::min(push.tokens.end, (block + blocks_each) * layout.block_tokens)};
      pieces.push_back({layers, tokens, push.heads});
    }
  }
  return pieces;
}

KvCoverage::KvCoverage(const KvLayout& layout, const IndexRange& tokens)
    : heads_(layout.kv_heads), tokens_(tokens), taken_(size_t{layout.layers} * layout.kv_heads) {}

uint64_t KvCoverage::CellsOf(const KvPiece& piece) {
  return uint64_t{piece.layers.count()} * piece.heads.count() * piece.tokens.count();
}

uint64_t KvCoverage::cells() const { return taken_.size() * tokens_.count(); }

bool KvCoverage::Claim(const KvPiece& piece) {
  const IndexRange& tokens = piece.tokens;
  const auto ends_before = [](const IndexRange& range, uint32_t token) {
    return range.end <= token;
  };
  for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
    for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
      const std::vector<IndexRange>& taken = Taken(layer, head);
      const auto next = std::lower_bound(taken.begin(), taken.end(), tokens.begin, ends_before);
      if (next != taken.end() && next->begin < tokens.end) return false;
    }
  }
  for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
    for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
      std::vector<IndexRange>& taken = Taken(layer, head);
      auto next = std::lower_bound(taken.begin(), taken.end(), tokens.begin, ends_before);
      const bool joins_next = next != taken.end() && next->begin == tokens.end;
      const bool joins_last = next != taken.begin() && std::prev(next)->end == tokens.begin;
      if (joins_last && joins_next) {
        std::prev(next)->end = next->end;
        taken.erase(next);
      } else if (joins_last) {
        std::prev(next)->end = tokens.end;
      } else if (joins_next) {
        next->begin = tokens.begin;
      } else {
        taken.insert(next, tokens);
      }
    }
  }
  return true;
}

}  // namespace baton
