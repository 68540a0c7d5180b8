// Runs of one piece of memory, for as long as somebody needs them. Single-threaded.
#ifndef BATON_COMMON_KV_TRANSFER_STAGING_BUFFER_H_
#define BATON_COMMON_KV_TRANSFER_STAGING_BUFFER_H_

#include <cstddef>
#include <map>
#include <optional>

#include "common/device/device.h"
#include "common/transport/transport.h"

namespace baton {

class StagingBuffer {
 public:
  // Runs begin and end at multiples: copies like it, and fewer gaps are left.
  static constexpr size_t kAlignment = 256;

  // REQUIRES: its bytes are a multiple of kAlignment, and not 0.
  explicit StagingBuffer(DeviceMemory memory);

  MutableSpan all() const { return {memory_.data(), memory_.bytes()}; }
  size_t bytes_used() const { return bytes_used_; }

  // The first run that is long enough. Nothing: there is none now. REQUIRES: 0 < bytes.
  std::optional<MutableSpan> Take(size_t bytes);
  // REQUIRES: taken, and not released.
  void Release(MutableSpan run);

 private:
  DeviceMemory memory_;
  std::map<size_t, size_t> free_;  // Offset and bytes of each run; no two touch.
  size_t bytes_used_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_STAGING_BUFFER_H_
