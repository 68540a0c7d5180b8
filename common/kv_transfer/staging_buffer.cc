#include "common/kv_transfer/staging_buffer.h"

#include <iterator>
#include <utility>

#include "common/base/check.h"

namespace baton {
namespace {

size_t RunBytes(size_t bytes) {
  constexpr size_t kUnit = StagingBuffer::kAlignment;
  return (bytes + kUnit - 1) / kUnit * kUnit;
}

}  // namespace

StagingBuffer::StagingBuffer(DeviceMemory memory) : memory_(std::move(memory)) {
  BATON_CHECK(memory_.bytes() > 0 && memory_.bytes() % kAlignment == 0);
  free_.emplace(0, memory_.bytes());
}

std::optional<MutableSpan> StagingBuffer::Take(size_t bytes) {
  BATON_CHECK(bytes > 0);
  const size_t taken = RunBytes(bytes);
  for (auto run = free_.begin(); run != free_.end(); ++run) {
    const auto [offset, length] = *run;
    if (length < taken) continue;
    free_.erase(run);
    if (length > taken) free_.emplace(offset + taken, length - taken);
    bytes_used_ += taken;
    return all().subspan(offset, bytes);
  }
  return std::nullopt;
}

void StagingBuffer::Release(MutableSpan run) {
  const auto offset = static_cast<size_t>(run.data() - memory_.data());
  size_t bytes = RunBytes(run.size());
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

}  // namespace baton
