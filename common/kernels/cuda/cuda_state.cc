#include "common/kernels/cuda/cuda_state.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kernels/cuda/step_memory.h"
#include "common/telemetry/log.h"

namespace baton::cuda {
namespace {

// Block tables of 256 sequences of 128k tokens in blocks of 16 take 8 MiB.
constexpr size_t kInputBytesMin = size_t{32} << 20;
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr size_t kScratchStep = size_t{2} << 20;
constexpr size_t kInputAlignment = 256;

size_t RoundUp(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

absl::StatusOr<std::unique_ptr<KernelState>> CudaState::Create(const KernelOptions& options) {
  // kernels.h took its table from this device.
  auto& device = static_cast<CudaDevice&>(*options.device);
  const cudaDeviceProp& properties = device.properties();
  const Launch launch = {.stream = device.stream(),
                         .multiprocessors = properties.multiProcessorCount,
                         .compute_capability = properties.major * 10 + properties.minor};
  std::unique_ptr<CudaState> state(new CudaState(device, launch, options));
  BATON_RETURN_IF_ERROR(
      CudaStatus(FindCode(),
                 absl::StrCat(device.name(), ": this build has no code for it (compute capability ",
                              properties.major, ".", properties.minor, ")")));
  BATON_RETURN_IF_ERROR(state->Allocate());
  return std::unique_ptr<KernelState>(std::move(state));
}

absl::Status CudaState::Allocate() {
  BATON_RETURN_IF_ERROR(device_.Select());
  if (cublasLtCreate(&cublas_) != CUBLAS_STATUS_SUCCESS) {
    return absl::UnavailableError(absl::StrCat(device_.name(), ": cuBLASLt cannot be used"));
  }
  BATON_ASSIGN_OR_RETURN(workspaces_, device_.Allocate(kLanes * kWorkspaceBytes));
  for (uint32_t i = 0; i < kLanes; ++i) {
    lanes_[i] = {.stream = launch_.stream,
                 .workspace = workspaces_.data() + i * kWorkspaceBytes,
                 .workspace_bytes = kWorkspaceBytes};
    if (i == 0) continue;
    Check(cudaStreamCreateWithFlags(&lanes_[i].stream, cudaStreamNonBlocking), "creating a stream");
    Check(cudaEventCreateWithFlags(&joined_[i], cudaEventDisableTiming), "creating an event");
  }
  Check(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming), "creating an event");
  Check(cudaEventCreateWithFlags(&uploads_done_, cudaEventDisableTiming), "creating an event");
  BATON_RETURN_IF_ERROR(AllocateInputs(kInputBytesMin));
  BATON_RETURN_IF_ERROR(started_tokens_.Allocate());
  Scratch(scratch_expected_);
  return TakeStatus();
}

absl::Status CudaState::AllocateInputs(size_t bytes) {
  if (inputs_.bytes() >= bytes) return absl::OkStatus();
  DropRecordings();  // They know the old addresses.
  inputs_ = {};
  pinned_ = {};
  BATON_ASSIGN_OR_RETURN(inputs_, device_.Allocate(bytes));
  BATON_ASSIGN_OR_RETURN(pinned_, device_.AllocatePinned(bytes));
  return absl::OkStatus();
}

absl::Status CudaState::Reserve(const StepBounds& bounds) {
  BATON_RETURN_IF_ERROR(device_.Select());
  BATON_RETURN_IF_ERROR(AllocateInputs(InputBytesFor(bounds)));
  ExpectScratch(ScratchBytesFor(launch_, activations_, bounds));
  Scratch(scratch_expected_);
  return TakeStatus();
}

CudaState::~CudaState() {
  // Also of a device that is lost the host holds something.
  static_cast<void>(device_.Select());
  static_cast<void>(cudaStreamSynchronize(launch_.stream));
  DropRecordings();
  for (const auto& [event, done] : when_done_) cudaEventDestroy(event);
  for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
  if (uploads_done_ != nullptr) cudaEventDestroy(uploads_done_);
  if (forked_ != nullptr) cudaEventDestroy(forked_);
  for (uint32_t i = 1; i < kLanes; ++i) {
    if (joined_[i] != nullptr) cudaEventDestroy(joined_[i]);
    if (lanes_[i].stream != nullptr) cudaStreamDestroy(lanes_[i].stream);
  }
  if (cublas_ != nullptr) cublasLtDestroy(cublas_);
}

void CudaState::Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Check(CudaStatus(error, absl::StrCat(device_.name(), ": ", what)));
}

void CudaState::Check(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void CudaState::BeginStep() {
  Check(device_.Select());
  // The copy engine may still read what the last step placed.
  Check(cudaEventSynchronize(uploads_done_), "waiting for uploads");
  used_ = 0;
  uploaded_ = 0;
  in_step_ = true;
}

const void* CudaState::Place(const void* numbers, size_t bytes) {
  BATON_CHECK_MSG(!recording_, "a recorded step must have placed all that it needs");
  const size_t begin = RoundUp(used_, kInputAlignment);
  if (begin + bytes > inputs_.bytes()) {
    Check(absl::ResourceExhaustedError(absl::StrCat("a step has more than ", inputs_.bytes(),
                                                    " bytes of tokens and block tables")));
    return inputs_.data();
  }
  // Of nothing the address is null.
  if (bytes > 0) std::memcpy(pinned_.data() + begin, numbers, bytes);
  used_ = begin + bytes;
  // Out of a step, as tests do, and within RunStep: at once.
  if (!in_step_) Upload();
  return inputs_.data() + begin;
}

void CudaState::Upload() {
  if (uploaded_ == used_) return;
  Check(cudaMemcpyAsync(inputs_.data() + uploaded_, pinned_.data() + uploaded_, used_ - uploaded_,
                        cudaMemcpyHostToDevice, launch_.stream),
        "uploading a step");
  Check(cudaEventRecord(uploads_done_, launch_.stream), "uploading a step");
  uploaded_ = used_;
}

std::shared_ptr<const void> CudaState::Place(std::span<const SequenceRows> sequences,
                                             uint32_t end_max) {
  const auto is_single = [](const SequenceRows& sequence) { return sequence.count <= 1; };
  std::vector<SequenceRows> sorted(sequences.begin(), sequences.end());
  const auto first_chunk = std::stable_partition(sorted.begin(), sorted.end(), is_single);
  SequenceTable all = {.count = static_cast<uint32_t>(sorted.size()), .end_max = end_max};
  std::vector<DeviceSequence> placed;
  std::vector<uint32_t> row_sequence;
  std::vector<uint32_t> block_table;
  for (const SequenceRows& sequence : sorted) {
    const uint32_t end = sequence.row + std::max(1u, sequence.count);
    if (row_sequence.size() < end) row_sequence.resize(end, kNoSequence);
    std::fill_n(row_sequence.begin() + sequence.row, sequence.count,
                static_cast<uint32_t>(placed.size()));
    placed.push_back({.row = sequence.row,
                      .count = sequence.count,
                      .position = sequence.position,
                      .blocks = static_cast<uint32_t>(block_table.size())});
    for (BlockId block : sequence.blocks) block_table.push_back(Raw(block));
    all.count_max = std::max(all.count_max, sequence.count);
    if (end_max == 0) all.end_max = std::max(all.end_max, sequence.position + sequence.count);
  }
  all.rows = static_cast<uint32_t>(row_sequence.size());
  all.blocks_end = static_cast<uint32_t>(block_table.size());
  const auto bring = [this](const auto& numbers) {
    return Place(numbers.data(), numbers.size() * sizeof(numbers[0]));
  };
  all.sequences = static_cast<const DeviceSequence*>(bring(placed));
  all.row_sequence = static_cast<const uint32_t*>(bring(row_sequence));
  all.block_table = static_cast<const uint32_t*>(bring(block_table));

  auto table = std::make_shared<PlacedTable>();
  table->all = all;
  table->singles = all;
  table->singles.row_sequence = nullptr;
  table->singles.count = static_cast<uint32_t>(first_chunk - sorted.begin());
  table->singles.count_max = std::min(1u, all.count_max);
  table->chunks = all;
  table->chunks.row_sequence = nullptr;
  table->chunks.sequences += table->singles.count;
  table->chunks.count -= table->singles.count;
  table->singles.blocks_end =
      table->chunks.count > 0 ? placed[table->singles.count].blocks : all.blocks_end;
  table->chunks.blocks_begin = table->singles.blocks_end;
  for (size_t i = table->singles.count; i < placed.size(); ++i) {
    table->chunk_blocks.push_back(placed[i].blocks);
  }
  table->chunk_blocks.push_back(all.blocks_end);
  return table;
}

std::shared_ptr<const PlacedTable> CudaState::TableOf(const PlacedSequences& sequences) {
  std::shared_ptr<const void> table = sequences.device;
  if (table == nullptr) table = Place(sequences.host, 0);
  return std::static_pointer_cast<const PlacedTable>(table);
}

absl::Status CudaState::RunStep(const StepShape* shape, absl::FunctionRef<absl::Status()> body) {
  in_step_ = false;
  Check(device_.Select());
  Upload();
  step_inputs_ = used_;
  // With what could not be placed nothing may run; a step before it may.
  if (!ok()) {
    static_cast<void>(cudaStreamSynchronize(launch_.stream));
    return TakeStatus();
  }
  const absl::Status status = shape == nullptr ? RunNow(body) : RunShape(*shape, body);
  if (status.ok()) return CallDone();
  static_cast<void>(cudaStreamSynchronize(launch_.stream));
  for (auto& [event, done] : when_done_) spare_events_.push_back(event);
  when_done_.clear();
  return status;
}

absl::Status CudaState::RunShape(const StepShape& shape, absl::FunctionRef<absl::Status()> body) {
  // What fails has not brought all that a recording needs; and a first run may drop recordings.
  if (!recordings_[shape].has_run) {
    const absl::Status status = RunNow(body);
    recordings_[shape].has_run = status.ok();
    return status;
  }
  Recording& recording = recordings_[shape];
  if (recording.impossible) return RunNow(body);
  if (recording.graph == nullptr) {
    const absl::Status recorded = Record(&recording, body);
    if (!recorded.ok()) {
      LogError("a step cannot be recorded, and runs operation by operation",
               {{"device", device_.name()}, {"reason", recorded.ToString()}});
      recording.impossible = true;
      return RunNow(body);
    }
  }
  Check(cudaGraphLaunch(recording.graph, launch_.stream), "replaying a step");
  ++replays_;
  return TakeStatus();
}

absl::Status CudaState::RunNow(absl::FunctionRef<absl::Status()> body) {
  const absl::Status status = body();
  const absl::Status kept = TakeStatus();
  return kept.ok() ? status : kept;
}

absl::Status CudaState::Record(Recording* recording, absl::FunctionRef<absl::Status()> body) {
  // Only this thread's calls: others may allocate meanwhile.
  Check(cudaStreamBeginCapture(launch_.stream, cudaStreamCaptureModeThreadLocal),
        "recording a step");
  recording_ = true;
  const absl::Status status = RunNow(body);
  recording_ = false;
  cudaGraph_t graph = nullptr;
  Check(cudaStreamEndCapture(launch_.stream, &graph), "recording a step");
  if (graph != nullptr && status.ok()) {
    Check(cudaGraphInstantiate(&recording->graph, graph, 0), "recording a step");
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  const absl::Status kept = TakeStatus();
  return status.ok() ? kept : status;
}

void CudaState::DropRecordings() {
  for (auto& [shape, recording] : recordings_) {
    if (recording.graph != nullptr) cudaGraphExecDestroy(recording.graph);
  }
  recordings_.clear();
}

void CudaState::WhenDone(std::function<void()> done) {
  BATON_CHECK(!recording_);
  cudaEvent_t event = nullptr;
  if (!spare_events_.empty()) {
    event = spare_events_.back();
    spare_events_.pop_back();
  } else {
    Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
  Check(cudaEventRecord(event, launch_.stream), "recording an event");
  when_done_.emplace_back(event, std::move(done));
}

absl::Status CudaState::CallDone() {
  auto waiting = std::exchange(when_done_, {});
  for (auto& [event, done] : waiting) {
    Check(cudaEventSynchronize(event), "computing a step");
    // After an error nothing that follows is complete.
    if (status_.ok()) done();
    spare_events_.push_back(event);
  }
  return TakeStatus();
}

void CudaState::Fork(uint32_t lanes) {
  Check(cudaEventRecord(forked_, launch_.stream), "forking");
  for (uint32_t i = 1; i < lanes; ++i) {
    Check(cudaStreamWaitEvent(lanes_[i].stream, forked_, 0), "forking");
  }
}

void CudaState::Join(uint32_t lanes) {
  for (uint32_t i = 1; i < lanes; ++i) {
    Check(cudaEventRecord(joined_[i], lanes_[i].stream), "joining");
    Check(cudaStreamWaitEvent(launch_.stream, joined_[i], 0), "joining");
  }
}

// Powers of two up to 8, then multiples of 8, then of 32.
uint32_t CudaState::PaddedRows(uint32_t rows) const {
  uint32_t padded = 1;
  while (padded < rows && padded < 8) padded *= 2;
  if (padded >= rows) return padded;
  return static_cast<uint32_t>(rows <= 64 ? RoundUp(rows, 8) : RoundUp(rows, 32));
}

absl::Status CudaState::Finish() {
  Check(cudaStreamSynchronize(launch_.stream), "computing a step");
  return TakeStatus();
}

absl::Status CudaState::Health() const {
  BATON_RETURN_IF_ERROR(device_.Select());
  // An error of a kernel stays until the process ends: every call returns it.
  const cudaError_t error = cudaStreamQuery(launch_.stream);
  return error == cudaErrorNotReady ? absl::OkStatus() : CudaStatus(error, device_.name());
}

const void* CudaState::Keep(const void* key, size_t bytes,
                            absl::FunctionRef<void(std::byte* to)> fill) {
  const auto found = kept_.find(key);
  if (found != kept_.end()) {
    BATON_CHECK_MSG(found->second.bytes() == bytes, "a key has one table");
    return found->second.data();
  }
  BATON_CHECK_MSG(!recording_, "a recorded step needs a table that its first run did not");
  std::vector<std::byte> table(bytes);
  fill(table.data());
  absl::StatusOr<DeviceMemory> memory = device_.Allocate(bytes);
  if (memory.ok()) Check(device_.CopyFromHost(memory->data(), table.data(), bytes));
  Check(memory.status());
  return ok() ? kept_.emplace(key, *std::move(memory)).first->second.data() : nullptr;
}

void* CudaState::Scratch(size_t bytes) {
  if (scratch_.bytes() >= bytes) return scratch_.data();
  BATON_CHECK_MSG(!recording_, "a recorded step needs more scratch memory than its first run");
  Check(cudaStreamSynchronize(launch_.stream), "waiting for scratch memory");
  DropRecordings();  // They know the old address.
  scratch_ = {};
  absl::StatusOr<DeviceMemory> memory = device_.Allocate(RoundUp(bytes, kScratchStep));
  if (!memory.ok()) {
    Check(memory.status());
    return nullptr;
  }
  scratch_ = *std::move(memory);
  return scratch_.data();
}

}  // namespace baton::cuda
