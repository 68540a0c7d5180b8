#include "common/kernels/cuda/started_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kernels/kernels.h"

namespace baton::cuda {

StartedTokens::~StartedTokens() {
  for (const Slot& slot : slots_) {
    if (slot.there != nullptr) cudaEventDestroy(slot.there);
  }
}

absl::Status StartedTokens::Allocate() {
  constexpr size_t kBytes = kStartedRowsMax * sizeof(int32_t);
  BATON_ASSIGN_OR_RETURN(tokens_, device_.Allocate(kBytes));
  BATON_ASSIGN_OR_RETURN(pinned_, device_.AllocatePinned(kSlots * kBytes));
  for (Slot& slot : slots_) {
    BATON_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&slot.there, cudaEventDisableTiming),
                                     absl::StrCat(device_.name(), ": creating an event")));
  }
  return absl::OkStatus();
}

int32_t* StartedTokens::PinnedOf(uint64_t step) const {
  return reinterpret_cast<int32_t*>(pinned_.data()) + step % kSlots * kStartedRowsMax;
}

absl::Status StartedTokens::Bring(uint32_t rows) {
  BATON_CHECK(rows <= kStartedRowsMax && brought_ < taken_ + kSlots);
  const std::string what = absl::StrCat(device_.name(), ": bringing tokens");
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(PinnedOf(brought_), data(), rows * sizeof(int32_t),
                                 cudaMemcpyDeviceToHost, device_.stream()),
                 what));
  Slot& slot = slots_[brought_ % kSlots];
  BATON_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(slot.there, device_.stream()), what));
  slot.rows = rows;
  ++brought_;
  return absl::OkStatus();
}

absl::Status StartedTokens::Take(std::span<TokenId> tokens) {
  BATON_CHECK(taken_ < brought_);
  const Slot& slot = slots_[taken_ % kSlots];
  BATON_CHECK(tokens.size() == slot.rows);
  absl::Status status = device_.Select();
  if (status.ok()) {
    const std::string what = absl::StrCat(device_.name(), ": computing a step");
    status = CudaStatus(cudaEventSynchronize(slot.there), what);
  }
  if (!status.ok()) static_cast<void>(cudaStreamSynchronize(device_.stream()));
  std::copy_n(PinnedOf(taken_), tokens.size(), tokens.data());
  ++taken_;
  return status;
}

}  // namespace baton::cuda
