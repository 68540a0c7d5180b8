// Where the bytes of a piece are for the transport: in the KV blocks themselves if the host can
// read those, otherwise in pinned memory of the host, through which they are copied.
//
// The pinned memory is allocated once and never grows; a piece takes as much of it as it has bytes,
// in one run, and whoever finds no room waits. Sends and receives have one each, so that neither
// can wait for the other: two workers that push to each other would otherwise stand still.
//
// Single-threaded: the transfer thread's. Copies are over when Fetch and Store return, so blocks
// are touched only inside them.
#ifndef BATON_COMMON_KV_TRANSFER_KV_STAGING_H_
#define BATON_COMMON_KV_TRANSFER_KV_STAGING_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/handoff_codec.h"
#include "common/transport/transport.h"

namespace baton {

// A piece between the arena and the transport. A plain value; KvStaging keeps count.
struct StagedPiece {
  std::vector<MutableSpan> host;    // In wire order: what the transport reads or writes.
  std::vector<MutableSpan> blocks;  // On the device; empty if `host` lies in the blocks.
};

class KvStaging {
 public:
  // For an arena of the host nothing is allocated. kInvalidArgument: not even one layer of one
  // block fits into `bytes`. kResourceExhausted: there is not so much memory to pin. The arena
  // outlives it.
  static absl::StatusOr<std::unique_ptr<KvStaging>> Create(const KvArena& arena, size_t bytes);

  const KvArena& arena() const { return arena_; }
  // Otherwise pieces stay in their blocks.
  bool is_pinned() const { return pinned_.data() != nullptr; }
  // What a piece may have at most to find room ever.
  size_t piece_bytes_max() const;
  size_t bytes_used() const { return bytes_used_; }
  size_t bytes_total() const { return pinned_.bytes(); }

  // Nothing: there is no room now. REQUIRES: PieceFits; not more than piece_bytes_max.
  std::optional<StagedPiece> Take(std::span<const BlockId> blocks, const KvPiece& piece);
  // REQUIRES: taken, and not released.
  void Release(const StagedPiece& piece);

  // From the blocks to the host, and back.
  absl::Status Fetch(const StagedPiece& piece) const;
  absl::Status Store(const StagedPiece& piece) const;

 private:
  KvStaging(const KvArena& arena, DeviceMemory pinned);
  std::optional<size_t> TakeRun(size_t bytes);
  // Calls `copy` for each run of the piece's blocks that lie on one device, with its bytes' place
  // on the host.
  using CopyRun = absl::FunctionRef<absl::Status(
      Device& device, std::span<const MutableSpan> blocks, std::byte* host)>;
  absl::Status CopyRuns(const StagedPiece& piece, CopyRun copy) const;

  const KvArena& arena_;
  const DeviceMemory pinned_;      // Empty for an arena of the host.
  std::map<size_t, size_t> free_;  // Offset and bytes of each run; no two touch.
  size_t bytes_used_ = 0;
};

// A worker's two.
struct TransferStaging {
  std::unique_ptr<KvStaging> sends;
  std::unique_ptr<KvStaging> receives;

  // `bytes` of each. As KvStaging::Create.
  static absl::StatusOr<TransferStaging> Create(const KvArena& arena, size_t bytes);
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_KV_STAGING_H_
