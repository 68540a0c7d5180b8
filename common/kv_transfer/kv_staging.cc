#include "common/kv_transfer/kv_staging.h"

#include <limits>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kv_transfer/kv_pieces.h"

namespace baton {
namespace {

// Runs begin and end at multiples: copies like it, and fewer gaps are left.
constexpr size_t kRunAlignment = 256;

size_t RunBytes(size_t bytes) {
  return (bytes + kRunAlignment - 1) / kRunAlignment * kRunAlignment;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvStaging>> KvStaging::Create(const KvArena& arena, size_t bytes) {
  Device& device = arena.device();
  if (device.kind() == DeviceKind::kCpu) return absl::WrapUnique(new KvStaging(arena, {}));
  const size_t whole = bytes / kRunAlignment * kRunAlignment;
  if (whole < arena.layout().layer_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("staging of ", bytes,
                                                   " bytes: one layer of one KV block has ",
                                                   arena.layout().layer_bytes()));
  }
  BATON_ASSIGN_OR_RETURN(DeviceMemory pinned, device.AllocatePinned(whole));
  return absl::WrapUnique(new KvStaging(arena, std::move(pinned)));
}

KvStaging::KvStaging(const KvArena& arena, DeviceMemory pinned)
    : arena_(arena), pinned_(std::move(pinned)) {
  if (is_pinned()) free_.emplace(0, pinned_.bytes());
}

size_t KvStaging::piece_bytes_max() const {
  return is_pinned() ? pinned_.bytes() : std::numeric_limits<size_t>::max();
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
  if (!is_pinned()) return StagedPiece{PieceSpans(arena_, blocks, piece), {}};
  const size_t bytes = PieceBytes(arena_.layout(), piece);
  BATON_CHECK(bytes <= piece_bytes_max());
  const std::optional<size_t> offset = TakeRun(RunBytes(bytes));
  if (!offset) return std::nullopt;
  return StagedPiece{{MutableSpan(pinned_.data() + *offset, bytes)},
                     PieceSpans(arena_, blocks, piece)};
}

void KvStaging::Release(const StagedPiece& piece) {
  if (!is_pinned()) return;
  auto offset = static_cast<size_t>(piece.host[0].data() - pinned_.data());
  size_t bytes = RunBytes(piece.host[0].size());
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
  return CopyRuns(piece, [](Device& device, std::span<const MutableSpan> blocks, std::byte* host) {
    const std::vector<ConstSpan> from(blocks.begin(), blocks.end());
    return device.Gather(host, from);
  });
}

absl::Status KvStaging::Store(const StagedPiece& piece) const {
  return CopyRuns(piece, [](Device& device, std::span<const MutableSpan> blocks, std::byte* host) {
    return device.Scatter(blocks, host);
  });
}

absl::Status KvStaging::CopyRuns(const StagedPiece& piece, CopyRun copy) const {
  if (!is_pinned()) return absl::OkStatus();
  std::byte* host = piece.host[0].data();
  std::span<const MutableSpan> rest(piece.blocks);
  while (!rest.empty()) {
    const uint32_t shard = arena_.ShardOf(rest[0].data());
    size_t count = 0;
    size_t bytes = 0;
    while (count < rest.size() && arena_.ShardOf(rest[count].data()) == shard) {
      bytes += rest[count++].size();
    }
    BATON_RETURN_IF_ERROR(copy(arena_.device(shard), rest.first(count), host));
    host += bytes;
    rest = rest.subspan(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<TransferStaging> TransferStaging::Create(const KvArena& arena, size_t bytes) {
  TransferStaging staging;
  BATON_ASSIGN_OR_RETURN(staging.sends, KvStaging::Create(arena, bytes));
  BATON_ASSIGN_OR_RETURN(staging.receives, KvStaging::Create(arena, bytes));
  return staging;
}

}  // namespace baton
