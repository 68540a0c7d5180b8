// What the CUDA kernels keep between operations: the stream, what a step needs to know, scratch
// memory, cuBLASLt, and recorded steps.
//
// A step of a shape is run once as it is: whatever is chosen or allocated on first use is then
// there. The second time it is recorded as a CUDA graph, and replayed from then on: one launch
// instead of some hundred. What differs between steps lies in memory whose address does not.
#ifndef BATON_COMMON_KERNELS_CUDA_CUDA_STATE_H_
#define BATON_COMMON_KERNELS_CUDA_CUDA_STATE_H_

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/device/cuda/cuda_device.h"
#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/started_tokens.h"
#include "common/kernels/kernels.h"

namespace baton::cuda {

// What PlacedSequences::device points to. `singles` and `chunks` are the sequences of one token,
// and the others: their tables have no row_sequence.
struct PlacedTable {
  SequenceTable all;
  SequenceTable singles;
  SequenceTable chunks;
  // Where the blocks of each of `chunks` begin in the block table, and where the last ones end.
  std::vector<uint32_t> chunk_blocks;
};

// Where a product of cuBLASLt runs.
struct Lane {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

class CudaState final : public KernelState {
 public:
  static absl::StatusOr<std::unique_ptr<KernelState>> Create(const KernelOptions& options);
  ~CudaState() override;

  absl::Status Reserve(const StepBounds& bounds) override;
  void BeginStep() override;
  const void* Place(const void* numbers, size_t bytes) override;
  std::shared_ptr<const void> Place(std::span<const SequenceRows> sequences,
                                    uint32_t end_max) override;
  // Where sequences were placed, or else are now.
  std::shared_ptr<const PlacedTable> TableOf(const PlacedSequences& sequences);
  absl::Status RunStep(const StepShape* shape, absl::FunctionRef<absl::Status()> body) override;
  void WhenDone(std::function<void()> done) override;
  uint32_t PaddedRows(uint32_t rows) const override;
  absl::Status Finish() override;
  uint64_t replays() const override { return replays_; }
  absl::Status Health() const override;

  const Launch& launch() const { return launch_; }
  cublasLtHandle_t cublas() const { return cublas_; }
  CudaDevice& device() { return device_; }
  StartedTokens& started_tokens() { return started_tokens_; }
  // Keeps the first error, which the step returns.
  void Check(cudaError_t error, const char* what);
  void Check(absl::Status status);
  bool ok() const { return status_.ok(); }
  // The device has finished all operations of the step so far, so what was placed since it began to
  // run makes room.
  void ForgetPlaced() { used_ = uploaded_ = step_inputs_; }
  // The error that was kept, which is then forgotten.
  absl::Status TakeStatus() { return std::exchange(status_, absl::OkStatus()); }

  // Memory of the device for one operation, at least so long. Null, and an error is kept, if there
  // is none.
  void* Scratch(size_t bytes);
  size_t scratch_bytes() const { return scratch_.bytes(); }
  // Some operation will need so much: Reserve has it then.
  void ExpectScratch(size_t bytes) { scratch_expected_ = std::max(scratch_expected_, bytes); }
  // A table in device memory that never changes, written by `fill` at the first call with this key.
  // Null, and an error is kept, if there is no memory. REQUIRES: no first call while a step is
  // recorded.
  const void* Keep(const void* key, size_t bytes, absl::FunctionRef<void(std::byte* to)> fill);
  // Lane 0 is the stream itself. Between Fork and Join the others run beside it, behind what came
  // before Fork and ahead of what comes after Join.
  static constexpr uint32_t kLanes = 3;
  const Lane& lane(uint32_t index) const { return lanes_[index]; }
  void Fork(uint32_t lanes);
  void Join(uint32_t lanes);

  // A step is being recorded: nothing may be measured or waited for.
  bool recording() const { return recording_; }
  // cuBLASLt's choice for a product, by (outputs, rows, inputs, how far apart rows of the result
  // are, alignment, type, type of the result, whether a bias is added).
  using ProductKey =
      std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, DType, DType, bool>;
  // Nothing: it has none.
  using Algorithms = std::map<ProductKey, std::optional<cublasLtMatmulAlgo_t>>;
  Algorithms& algorithms() { return algorithms_; }

 private:
  struct Recording {
    bool has_run = false;     // Without an error.
    bool impossible = false;  // To record.
    cudaGraphExec_t graph = nullptr;
  };
  struct ShapeLess {
    bool operator()(const StepShape& a, const StepShape& b) const {
      return std::tie(a.rows, a.end_max, a.cache, a.layout) <
             std::tie(b.rows, b.end_max, b.cache, b.layout);
    }
  };

  CudaState(CudaDevice& device, const Launch& launch, const KernelOptions& options)
      : device_(device),
        launch_(launch),
        activations_(options.activations),
        started_tokens_(device),
        scratch_expected_(options.scratch_bytes) {}
  absl::Status Allocate();
  absl::Status AllocateInputs(size_t bytes);
  void Upload();
  absl::Status RunShape(const StepShape& shape, absl::FunctionRef<absl::Status()> body);
  absl::Status RunNow(absl::FunctionRef<absl::Status()> body);
  absl::Status Record(Recording* recording, absl::FunctionRef<absl::Status()> body);
  void DropRecordings();
  // Waits for what WhenDone was told, in order.
  absl::Status CallDone();

  CudaDevice& device_;
  const Launch launch_;
  const DType activations_;
  StartedTokens started_tokens_;
  cublasLtHandle_t cublas_ = nullptr;
  DeviceMemory workspaces_;
  Lane lanes_[kLanes];
  cudaEvent_t forked_ = nullptr;
  cudaEvent_t joined_[kLanes] = {};  // Of lane 0: none.
  DeviceMemory scratch_;
  size_t scratch_expected_ = 0;
  std::map<const void*, DeviceMemory> kept_;
  absl::Status status_;

  // What was placed, on both sides; [uploaded_, used_) has not been copied yet.
  DeviceMemory pinned_;
  DeviceMemory inputs_;
  size_t used_ = 0;
  size_t uploaded_ = 0;
  size_t step_inputs_ = 0;  // Of used_, what was placed before the step began to run.
  cudaEvent_t uploads_done_ = nullptr;
  bool in_step_ = false;
  uint64_t replays_ = 0;

  std::map<StepShape, Recording, ShapeLess> recordings_;
  bool recording_ = false;
  std::vector<std::pair<cudaEvent_t, std::function<void()>>> when_done_;
  std::vector<cudaEvent_t> spare_events_;
  Algorithms algorithms_;
};

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_CUDA_STATE_H_
