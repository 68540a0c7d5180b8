// The tokens of steps that the device was given before the host has those of the step before:
// where kernels write them and the next step reads them, and the way of each step's to the host.
// See "A step ahead" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_KERNELS_CUDA_STARTED_TOKENS_H_
#define BATON_COMMON_KERNELS_CUDA_STARTED_TOKENS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/device/cuda/cuda_device.h"

namespace baton::cuda {

class StartedTokens {
 public:
  explicit StartedTokens(CudaDevice& device) : device_(device) {}
  StartedTokens(const StartedTokens&) = delete;
  StartedTokens& operator=(const StartedTokens&) = delete;
  // The stream has finished.
  ~StartedTokens();

  absl::Status Allocate();
  // [kStartedRowsMax] of the device, at one address.
  int32_t* data() const { return reinterpret_cast<int32_t*>(tokens_.data()); }

  // Brings the first `rows` of data() to the host, behind all that is on the stream. REQUIRES: of
  // two steps before at least one was taken.
  absl::Status Bring(uint32_t rows);
  // Waits for the oldest that were brought. After an error the stream has finished. REQUIRES: there
  // are some, of so many rows.
  absl::Status Take(std::span<TokenId> tokens);

 private:
  // The host reads one while the device writes the other.
  static constexpr uint64_t kSlots = 2;
  struct Slot {
    cudaEvent_t there = nullptr;
    uint32_t rows = 0;
  };

  int32_t* PinnedOf(uint64_t step) const;

  CudaDevice& device_;
  DeviceMemory tokens_;
  DeviceMemory pinned_;
  Slot slots_[kSlots];
  uint64_t brought_ = 0;
  uint64_t taken_ = 0;
};

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_STARTED_TOKENS_H_
