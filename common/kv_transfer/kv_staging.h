// Where the bytes of a piece are for the transport: in the KV blocks themselves if the host can
// read those, otherwise in one run of a buffer, through which they are copied. The buffer is pinned
// memory of the host, or memory of the GPU if the transport reaches that: of each GPU, if KV lies
// on several, and a piece has KV heads of one of them.
//
// Buffers are allocated once and never grow; a piece takes as much of one as it has bytes, in one
// run, and whoever finds no room waits. Sends and receives have their own, so that neither can wait
// for the other: two workers that push to each other would otherwise stand still.
//
// Single-threaded: the transfer thread's. Copies are over when Fetch, Store and Land return, so
// blocks are touched only inside them.
#ifndef BATON_COMMON_KV_TRANSFER_KV_STAGING_H_
#define BATON_COMMON_KV_TRANSFER_KV_STAGING_H_

#include <cstddef>
#include <cstdint>
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
#include "common/kv_transfer/kv_pieces.h"
#include "common/kv_transfer/staging_buffer.h"
#include "common/transport/transport.h"

namespace baton {

// What pieces pass through on their way.
enum class StagingMemory { kNone, kPinned, kDevice };

// A piece between the arena and the transport. A plain value; KvStaging keeps count.
struct StagedPiece {
  std::vector<MutableSpan> wire;    // In wire order: what the transport reads or writes.
  std::vector<MutableSpan> blocks;  // On the device; empty if `wire` lies in the blocks.
  uint32_t buffer = 0;              // Which one `wire` lies in.
};

class KvStaging {
 public:
  // Of a payload in the GPU's memory its checksum covers so many bytes at each end: all of them
  // would have to come to the host.
  static constexpr uint64_t kCheckedBytesOnDevice = uint64_t{32} << 10;

  // For an arena of the host nothing is allocated, for others what `memory` says: not kNone.
  // `bytes` are those of a buffer: of one, or for kDevice of one on each of the arena's devices.
  // kInvalidArgument: not even one layer of one block fits into a buffer. kResourceExhausted: there
  // is not so much memory. The arena outlives it.
  static absl::StatusOr<std::unique_ptr<KvStaging>> Create(
      const KvArena& arena, size_t bytes, StagingMemory memory = StagingMemory::kPinned);

  const KvArena& arena() const { return arena_; }
  StagingMemory memory() const { return memory_; }
  // For kNone none, for kDevice one of each of the arena's devices; all are of one size.
  std::vector<MutableSpan> buffers() const;
  // What a piece may have at most to find room ever.
  size_t piece_bytes_max() const;
  // Whether the piece can find room ever: not too large and, for kDevice, heads of one device.
  // REQUIRES: PieceFits.
  bool Takes(const KvPiece& piece) const;
  size_t bytes_used() const;
  size_t bytes_total() const;

  // Nothing: there is no room now. REQUIRES: Takes(piece).
  std::optional<StagedPiece> Take(std::span<const BlockId> blocks, const KvPiece& piece);
  // So many bytes of no blocks, of each buffer in turn: what Fetch and Store do nothing with.
  // REQUIRES: not kNone; 0 < bytes <= piece_bytes_max.
  std::optional<StagedPiece> TakeBytes(size_t bytes);
  // REQUIRES: taken, and not released.
  void Release(const StagedPiece& piece);

  // From the blocks to where the transport reads, and back.
  absl::Status Fetch(const StagedPiece& piece) const;
  absl::Status Store(const StagedPiece& piece) const;
  // What a transport received in its own memory, to where it should have landed.
  absl::Status Land(const StagedPiece& piece, ConstSpan payload) const;

  // After the transport has said that the piece landed, and before it is looked at.
  absl::Status FinishLanding(const StagedPiece& piece) const;

  // What a sender should say as KvMessage::checked_bytes.
  uint64_t CheckedBytes(uint64_t payload_bytes) const;
  // XXH3-64 of the first and the last `bytes` of the piece as the transport has them, or of all of
  // it if it has no more than both. REQUIRES: it is so long.
  absl::StatusOr<uint64_t> Checksum(const StagedPiece& piece, uint64_t bytes) const;

 private:
  KvStaging(const KvArena& arena, StagingMemory memory, std::vector<StagingBuffer> buffers,
            DeviceMemory scratch);
  Device& DeviceOf(const StagedPiece& piece) const { return arena_.device(piece.buffer); }
  std::optional<StagedPiece> TakeFrom(uint32_t buffer, size_t bytes);
  absl::Status AddTo(RunningChecksum& checksum, Device& device, MutableSpan span) const;
  // Calls `copy` for each run of the piece's blocks that lie on one device, with its bytes' place
  // in the buffer.
  using CopyRun = absl::FunctionRef<absl::Status(
      Device& device, std::span<const MutableSpan> blocks, std::byte* wire)>;
  absl::Status CopyRuns(const StagedPiece& piece, CopyRun copy) const;

  const KvArena& arena_;
  const StagingMemory memory_;
  std::vector<StagingBuffer> buffers_;  // For kDevice by shard of the arena.
  uint32_t next_buffer_ = 0;            // Of TakeBytes.
  const DeviceMemory scratch_;          // Pinned; for kDevice, to look at what is there.
};

// A worker's two.
struct TransferStaging {
  std::unique_ptr<KvStaging> sends;
  std::unique_ptr<KvStaging> receives;

  // Each as KvStaging::Create.
  static absl::StatusOr<TransferStaging> Create(const KvArena& arena, size_t bytes,
                                                StagingMemory memory = StagingMemory::kPinned);
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_KV_STAGING_H_
