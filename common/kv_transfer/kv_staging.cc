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

// Runs begin and end at multiples: copies like it, and fewer gaps are left.
constexpr size_t kRunAlignment = 256;
// What is looked at on the host comes there in such pieces.
constexpr size_t kScratchBytes = size_t{1} << 20;

size_t RunBytes(size_t bytes) {
  return (bytes + kRunAlignment - 1) / kRunAlignment * kRunAlignment;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvStaging>> KvStaging::Create(const KvArena& arena, size_t bytes,
                                                             StagingMemory memory) {
  Device& device = arena.device();
  if (device.kind() == DeviceKind::kCpu) {
    return absl::WrapUnique(new KvStaging(arena, StagingMemory::kNone, {}, {}));
  }
  BATON_CHECK(memory != StagingMemory::kNone);
  const size_t whole = bytes / kRunAlignment * kRunAlignment;
  if (whole < arena.layout().layer_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("staging of ", bytes,
                                                   " bytes: one layer of one KV block has ",
                                                   arena.layout().layer_bytes()));
  }
  if (memory == StagingMemory::kPinned) {
    BATON_ASSIGN_OR_RETURN(DeviceMemory pinned, device.AllocatePinned(whole));
    return absl::WrapUnique(new KvStaging(arena, memory, std::move(pinned), {}));
  }
  if (arena.shard_count() > 1) {
    return absl::InvalidArgumentError("the KV cache lies on several GPUs");
  }
  BATON_ASSIGN_OR_RETURN(DeviceMemory buffer, device.Allocate(whole));
  BATON_ASSIGN_OR_RETURN(DeviceMemory scratch, device.AllocatePinned(kScratchBytes));
  return absl::WrapUnique(new KvStaging(arena, memory, std::move(buffer), std::move(scratch)));
}

KvStaging::KvStaging(const KvArena& arena, StagingMemory memory, DeviceMemory buffer,
                     DeviceMemory scratch)
    : arena_(arena), memory_(memory), buffer_(std::move(buffer)), scratch_(std::move(scratch)) {
  if (memory_ != StagingMemory::kNone) free_.emplace(0, buffer_.bytes());
}

size_t KvStaging::piece_bytes_max() const {
  return memory_ == StagingMemory::kNone ? std::numeric_limits<size_t>::max() : buffer_.bytes();
}

// The first run that is long enough.
std::optional<size_t> KvStaging::TakeRun(size_t bytes) {
  for (auto run = free_.begin(); run != free_.end(); ++run) {
    const auto [offset, length] = *run;
    if (length < bytes) continue;
    free_.erase(run);
    if (length > bytes) free_.emplace(offset + bytes, length - bytes);
    bytes_used_ += bytes;
    return offset;
  }
  return std::nullopt;
}

std::optional<StagedPiece> KvStaging::Take(std::span<const BlockId> blocks, const KvPiece& piece) {
  if (memory_ == StagingMemory::kNone) return StagedPiece{PieceSpans(arena_, blocks, piece), {}};
  std::optional<StagedPiece> staged = TakeBytes(PieceBytes(arena_.layout(), piece));
  if (staged) staged->blocks = PieceSpans(arena_, blocks, piece);
  return staged;
}

std::optional<StagedPiece> KvStaging::TakeBytes(size_t bytes) {
  BATON_CHECK(bytes > 0 && bytes <= buffer_.bytes());
  const std::optional<size_t> offset = TakeRun(RunBytes(bytes));
  if (!offset) return std::nullopt;
  return StagedPiece{{buffer().subspan(*offset, bytes)}, {}};
}

void KvStaging::Release(const StagedPiece& piece) {
  if (memory_ == StagingMemory::kNone) return;
  auto offset = static_cast<size_t>(piece.wire[0].data() - buffer_.data());
  size_t bytes = RunBytes(piece.wire[0].size());
  BATON_CHECK(bytes_used_ >= bytes);
  bytes_used_ -= bytes;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto last = std::prev(next);
    BATON_CHECK(last->first + last->second <= offset);
    if (last->first + last->second == offset) {
      last->second += bytes;
      return;
    }
  }
  free_.emplace(offset, bytes);
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
  return arena_.device().Scatter(piece.wire, payload.data());
}

uint64_t KvStaging::CheckedBytes(uint64_t payload_bytes) const {
  return memory_ == StagingMemory::kDevice ? std::min(payload_bytes, kCheckedBytesOnDevice)
                                           : payload_bytes;
}

absl::Status KvStaging::FinishLanding() const {
  return memory_ == StagingMemory::kDevice ? arena_.device().SeeRemoteWrites() : absl::OkStatus();
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
    BATON_RETURN_IF_ERROR(AddTo(checksum, span.first(head_end - begin)));
    BATON_RETURN_IF_ERROR(AddTo(checksum, span.last(end - tail_begin)));
    begin = end;
  }
  return checksum.Get();
}

absl::Status KvStaging::AddTo(RunningChecksum& checksum, MutableSpan span) const {
  while (memory_ == StagingMemory::kDevice && !span.empty()) {
    const ConstSpan part = span.first(std::min(span.size(), scratch_.bytes()));
    BATON_RETURN_IF_ERROR(arena_.device().Gather(scratch_.data(), {&part, 1}));
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
