#include "common/kv_transfer/kv_staging.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

// What is looked at on the host comes there in such pieces.
constexpr size_t kScratchBytes = size_t{1} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<KvStaging>> KvStaging::Create(const KvArena& arena, size_t bytes,
                                                             StagingMemory memory) {
  if (arena.device().kind() == DeviceKind::kCpu) {
    return absl::WrapUnique(new KvStaging(arena, StagingMemory::kNone, {}, {}));
  }
  BATON_CHECK(memory != StagingMemory::kNone);
  const bool on_device = memory == StagingMemory::kDevice;
  const KvLayout& staged = on_device ? arena.shard_layout() : arena.layout();
  const size_t whole = bytes / StagingBuffer::kAlignment * StagingBuffer::kAlignment;
  if (whole < staged.layer_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "staging of ", bytes, " bytes: one layer of one KV block has ", staged.layer_bytes()));
  }
  std::vector<StagingBuffer> buffers;
  for (uint32_t shard = 0; shard < (on_device ? arena.shard_count() : 1); ++shard) {
    Device& device = arena.device(shard);
    BATON_ASSIGN_OR_RETURN(DeviceMemory buffer,
                           on_device ? device.Allocate(whole) : device.AllocatePinned(whole));
    buffers.emplace_back(std::move(buffer));
  }
  DeviceMemory scratch;
  if (on_device) {
    BATON_ASSIGN_OR_RETURN(scratch, arena.device().AllocatePinned(kScratchBytes));
  }
  return absl::WrapUnique(new KvStaging(arena, memory, std::move(buffers), std::move(scratch)));
}

KvStaging::KvStaging(const KvArena& arena, StagingMemory memory, std::vector<StagingBuffer> buffers,
                     DeviceMemory scratch)
    : arena_(arena), memory_(memory), buffers_(std::move(buffers)), scratch_(std::move(scratch)) {}

std::vector<MutableSpan> KvStaging::buffers() const {
  std::vector<MutableSpan> all;
  for (const StagingBuffer& buffer : buffers_) all.push_back(buffer.all());
  return all;
}

size_t KvStaging::piece_bytes_max() const {
  return buffers_.empty() ? std::numeric_limits<size_t>::max() : buffers_[0].all().size();
}

bool KvStaging::Takes(const KvPiece& piece) const {
  if (PieceBytes(arena_.layout(), piece) > piece_bytes_max()) return false;
  return memory_ != StagingMemory::kDevice ||
         arena_.ShardOfHead(piece.heads.begin) == arena_.ShardOfHead(piece.heads.end - 1);
}

size_t KvStaging::bytes_used() const {
  size_t bytes = 0;
  for (const StagingBuffer& buffer : buffers_) bytes += buffer.bytes_used();
  return bytes;
}

size_t KvStaging::bytes_total() const {
  return buffers_.empty() ? 0 : buffers_.size() * piece_bytes_max();
}

std::optional<StagedPiece> KvStaging::Take(std::span<const BlockId> blocks, const KvPiece& piece) {
  BATON_CHECK(Takes(piece));
  if (memory_ == StagingMemory::kNone) return StagedPiece{PieceSpans(arena_, blocks, piece), {}};
  const bool on_device = memory_ == StagingMemory::kDevice;
  std::optional<StagedPiece> staged = TakeFrom(
      on_device ? arena_.ShardOfHead(piece.heads.begin) : 0, PieceBytes(arena_.layout(), piece));
  if (staged) staged->blocks = PieceSpans(arena_, blocks, piece);
  return staged;
}

std::optional<StagedPiece> KvStaging::TakeBytes(size_t bytes) {
  BATON_CHECK(!buffers_.empty() && bytes <= piece_bytes_max());
  const uint32_t buffer = next_buffer_;
  next_buffer_ = (next_buffer_ + 1) % static_cast<uint32_t>(buffers_.size());
  return TakeFrom(buffer, bytes);
}

std::optional<StagedPiece> KvStaging::TakeFrom(uint32_t buffer, size_t bytes) {
  const std::optional<MutableSpan> run = buffers_[buffer].Take(bytes);
  if (!run) return std::nullopt;
  return StagedPiece{{*run}, {}, buffer};
}

void KvStaging::Release(const StagedPiece& piece) {
  if (memory_ != StagingMemory::kNone) buffers_[piece.buffer].Release(piece.wire[0]);
}

absl::Status KvStaging::Fetch(const StagedPiece& piece) const {
  return CopyRuns(piece, [](Device& device, std::span<const MutableSpan> blocks, std::byte* wire) {
    const std::vector<ConstSpan> from(blocks.begin(), blocks.end());
    return device.Gather(wire, from);
  });
}

absl::Status KvStaging::Store(const StagedPiece& piece) const {
  return CopyRuns(piece, [](Device& device, std::span<const MutableSpan> blocks, std::byte* wire) {
    return device.Scatter(blocks, wire);
  });
}

absl::Status KvStaging::Land(const StagedPiece& piece, ConstSpan payload) const {
  return DeviceOf(piece).Scatter(piece.wire, payload.data());
}

uint64_t KvStaging::CheckedBytes(uint64_t payload_bytes) const {
  return memory_ == StagingMemory::kDevice ? std::min(payload_bytes, kCheckedBytesOnDevice)
                                           : payload_bytes;
}

absl::Status KvStaging::FinishLanding(const StagedPiece& piece) const {
  return memory_ == StagingMemory::kDevice ? DeviceOf(piece).SeeRemoteWrites() : absl::OkStatus();
}

absl::StatusOr<uint64_t> KvStaging::Checksum(const StagedPiece& piece, uint64_t bytes) const {
  const uint64_t total = TotalBytes(piece.wire);
  BATON_CHECK(bytes <= total);
  const bool all = bytes >= total - bytes;
  if (all && memory_ != StagingMemory::kDevice) return ChecksumOf(piece.wire);
  // [0, head) and [tail, total).
  const uint64_t head = all ? total : bytes;
  const uint64_t tail = all ? total : total - bytes;
  RunningChecksum checksum;
  uint64_t begin = 0;
  for (const MutableSpan& span : piece.wire) {
    const uint64_t end = begin + span.size();
    const uint64_t head_end = std::clamp(head, begin, end);
    const uint64_t tail_begin = std::clamp(tail, begin, end);
    BATON_RETURN_IF_ERROR(AddTo(checksum, DeviceOf(piece), span.first(head_end - begin)));
    BATON_RETURN_IF_ERROR(AddTo(checksum, DeviceOf(piece), span.last(end - tail_begin)));
    begin = end;
  }
  return checksum.Get();
}

absl::Status KvStaging::AddTo(RunningChecksum& checksum, Device& device, MutableSpan span) const {
  while (memory_ == StagingMemory::kDevice && !span.empty()) {
    const ConstSpan part = span.first(std::min(span.size(), scratch_.bytes()));
    BATON_RETURN_IF_ERROR(device.Gather(scratch_.data(), {&part, 1}));
    checksum.Add(scratch_.data(), part.size());
    span = span.subspan(part.size());
  }
  checksum.Add(span.data(), span.size());
  return absl::OkStatus();
}

absl::Status KvStaging::CopyRuns(const StagedPiece& piece, CopyRun copy) const {
  if (memory_ == StagingMemory::kNone) return absl::OkStatus();
  std::byte* wire = piece.wire[0].data();
  std::span<const MutableSpan> rest(piece.blocks);
  while (!rest.empty()) {
    const uint32_t shard = arena_.ShardOf(rest[0].data());
    size_t count = 0;
    size_t bytes = 0;
    while (count < rest.size() && arena_.ShardOf(rest[count].data()) == shard) {
      bytes += rest[count++].size();
    }
    BATON_RETURN_IF_ERROR(copy(arena_.device(shard), rest.first(count), wire));
    wire += bytes;
    rest = rest.subspan(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<TransferStaging> TransferStaging::Create(const KvArena& arena, size_t bytes,
                                                        StagingMemory memory) {
  TransferStaging staging;
  BATON_ASSIGN_OR_RETURN(staging.sends, KvStaging::Create(arena, bytes, memory));
  BATON_ASSIGN_OR_RETURN(staging.receives, KvStaging::Create(arena, bytes, memory));
  return staging;
}

}  // namespace baton
