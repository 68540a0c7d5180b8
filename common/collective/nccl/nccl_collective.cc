#include "common/collective/nccl/nccl_collective.h"

#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/device/cuda/cuda_device.h"

namespace baton {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";

// The functions that are needed. A module that is linked to NCCL would not load without it.
struct Nccl {
  decltype(&ncclCommInitAll) init_all = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;

  // Is never unloaded.
  static absl::StatusOr<Nccl> Load();
  absl::Status Check(ncclResult_t result, const std::string& what) const {
    if (result == ncclSuccess) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(what, ": NCCL: ", error_string(result)));
  }
};

absl::StatusOr<Nccl> Nccl::Load() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("several GPUs need NCCL: ", dlerror()));
  }
  const auto find = [library](const char* name, auto* function) {
    *function = reinterpret_cast<std::decay_t<decltype(*function)>>(dlsym(library, name));
    return *function != nullptr;
  };
  Nccl nccl;
  if (find("ncclCommInitAll", &nccl.init_all) && find("ncclAllReduce", &nccl.all_reduce) &&
      find("ncclBroadcast", &nccl.broadcast) && find("ncclSend", &nccl.send) &&
      find("ncclRecv", &nccl.receive) && find("ncclGroupStart", &nccl.group_start) &&
      find("ncclGroupEnd", &nccl.group_end) && find("ncclCommAbort", &nccl.abort) &&
      find("ncclCommDestroy", &nccl.destroy) && find("ncclGetErrorString", &nccl.error_string)) {
    return nccl;
  }
  return absl::UnavailableError(absl::StrCat(kLibrary, " lacks a function"));
}

// REQUIRES: a float type.
ncclDataType_t TypeOf(DType dtype) {
  BATON_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16);
  if (dtype == DType::kF32) return ncclFloat32;
  return dtype == DType::kBF16 ? ncclBfloat16 : ncclFloat16;
}

// From 2.22 on NCCL connects what a collective needs when it is first called. Then a rank that has
// failed before would leave the others waiting within the call, where nothing can abort them.
void ConnectAtOnce() { setenv("NCCL_RUNTIME_CONNECT", "0", /*overwrite=*/0); }

// A rank queues at most about so many operations that are not complete. A launch waits for room
// when too much is queued, and what waits within NCCL cannot be aborted. CUDA does not say how much
// that is; this is for a thousand launches, of which half a layer takes five or six. Not measured.
constexpr size_t kQueuedMax = 128;
constexpr size_t kMarks = 4;

// What the ranks share. Communicators go together, when the last rank has gone.
class Group {
 public:
  explicit Group(const Nccl& nccl) : nccl_(nccl) {}
  ~Group() {
    for (Rank& rank : ranks_) {
      for (cudaEvent_t mark : rank.marks) {
        if (mark != nullptr) cudaEventDestroy(mark);
      }
      const absl::MutexLock lock(&rank.mutex);
      if (!aborted_ && rank.communicator != nullptr) nccl_.destroy(rank.communicator);
    }
  }

  absl::Status Connect(std::span<Device* const> devices) {
    std::vector<int> indices;
    ranks_ = std::vector<Rank>(devices.size());
    for (size_t i = 0; i < devices.size(); ++i) {
      // MakeCollectives took its table from such a device.
      ranks_[i].device = static_cast<CudaDevice*>(devices[i]);
      indices.push_back(ranks_[i].device->index());
    }
    ConnectAtOnce();
    std::vector<ncclComm_t> communicators(devices.size());
    BATON_RETURN_IF_ERROR(
        nccl_.Check(nccl_.init_all(communicators.data(), static_cast<int>(communicators.size()),
                                   indices.data()),
                    absl::StrCat("connecting ", communicators.size(), " GPUs")));
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const absl::MutexLock lock(&ranks_[i].mutex);
      ranks_[i].communicator = communicators[i];
      BATON_RETURN_IF_ERROR(ranks_[i].device->Select());
      for (cudaEvent_t& mark : ranks_[i].marks) {
        BATON_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming),
                                         ranks_[i].device->name() + ": creating an event"));
      }
    }
    return Rehearse(communicators);
  }

  uint32_t size() const { return static_cast<uint32_t>(ranks_.size()); }

  absl::Status AllReduceSum(uint32_t index, const TensorView& x) {
    return Queue(index, [&](ncclComm_t communicator, cudaStream_t stream) {
      return nccl_.all_reduce(x.data(), x.data(), x.elements(), TypeOf(x.dtype()), ncclSum,
                              communicator, stream);
    });
  }
  absl::Status Broadcast(uint32_t index, const TensorView& x) {
    return Queue(index, [&](ncclComm_t communicator, cudaStream_t stream) {
      return nccl_.broadcast(x.data(), x.data(), x.elements(), TypeOf(x.dtype()), /*root=*/0,
                             communicator, stream);
    });
  }

  absl::Status GatherParts(uint32_t index, const TensorView& part,
                           std::span<const TensorView> parts) {
    return Queue(index, [&](ncclComm_t communicator, cudaStream_t stream) {
      return index == 0 ? Receive(parts, communicator, stream) : Send(part, communicator, stream);
    });
  }

  // Kernels that wait for a rank that will not come end, too.
  void Abort() {
    if (aborted_.exchange(true)) return;
    for (Rank& rank : ranks_) {
      const absl::MutexLock lock(&rank.mutex);
      nccl_.abort(rank.communicator);
    }
  }

 private:
  struct Rank {
    CudaDevice* device = nullptr;
    // By the rank's own thread: operations that it has queued, and of every 32nd where it is.
    uint64_t queued = 0;
    cudaEvent_t marks[kMarks] = {};
    absl::Mutex mutex;
    ncclComm_t communicator ABSL_GUARDED_BY(mutex) = nullptr;  // Gone once aborted_ is set.
  };

  using Operation = absl::FunctionRef<ncclResult_t(ncclComm_t communicator, cudaStream_t stream)>;
  absl::Status Queue(uint32_t index, Operation operation) {
    Rank& rank = ranks_[index];
    BATON_RETURN_IF_ERROR(rank.device->Select());
    BATON_RETURN_IF_ERROR(AwaitRoom(rank));
    const absl::MutexLock lock(&rank.mutex);
    if (aborted_) return absl::AbortedError("another GPU cannot go on");
    return nccl_.Check(operation(rank.communicator, rank.device->stream()), rank.device->name());
  }

  // Waits where Abort ends it: without the lock.
  static absl::Status AwaitRoom(Rank& rank) {
    constexpr uint64_t kApart = kQueuedMax / kMarks;
    const uint64_t index = rank.queued++;
    if (index % kApart != 0) return absl::OkStatus();
    cudaEvent_t mark = rank.marks[index / kApart % kMarks];
    const std::string what = rank.device->name() + ": waiting for another GPU";
    BATON_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(mark), what));
    return CudaStatus(cudaEventRecord(mark, rank.device->stream()), what);
  }

  // NCCL connects two ranks when one first sends to the other, and whoever comes first waits within
  // the call. That happens here, on one thread, where nobody can be missing. For collectives see
  // ConnectAtOnce.
  absl::Status Rehearse(std::span<const ncclComm_t> communicators) {
    std::vector<DeviceMemory> numbers;
    for (Rank& rank : ranks_) {
      BATON_ASSIGN_OR_RETURN(numbers.emplace_back(), rank.device->Allocate(sizeof(float)));
    }
    const absl::Status exchanged = SendToFirst(communicators, numbers);
    // What has been queued may wait for what has not, and the numbers' memory for that.
    if (!exchanged.ok()) Abort();
    return exchanged;
  }

  // Each rank's number to the first one. Waits for the end.
  absl::Status SendToFirst(std::span<const ncclComm_t> communicators,
                           std::span<const DeviceMemory> numbers) const {
    ncclResult_t result = nccl_.group_start();
    for (size_t i = 1; i < ranks_.size() && result == ncclSuccess; ++i) {
      result = nccl_.send(numbers[i].data(), 1, ncclFloat32, /*peer=*/0, communicators[i],
                          ranks_[i].device->stream());
      if (result != ncclSuccess) break;
      result = nccl_.receive(numbers[0].data(), 1, ncclFloat32, static_cast<int>(i),
                             communicators[0], ranks_[0].device->stream());
    }
    const ncclResult_t ended = nccl_.group_end();
    BATON_RETURN_IF_ERROR(
        nccl_.Check(result == ncclSuccess ? ended : result, "a first exchange between GPUs"));
    for (size_t i = 0; i < ranks_.size(); ++i) {
      float number = 0.0f;
      BATON_RETURN_IF_ERROR(ranks_[i].device->CopyToHost(reinterpret_cast<std::byte*>(&number),
                                                         numbers[i].data(), sizeof(number)));
    }
    return absl::OkStatus();
  }

  // Neither side starts a transfer of nothing.
  ncclResult_t Send(const TensorView& part, ncclComm_t communicator, cudaStream_t stream) const {
    if (part.elements() == 0) return ncclSuccess;
    return nccl_.send(part.data(), part.elements(), TypeOf(part.dtype()), /*peer=*/0, communicator,
                      stream);
  }
  // From all other ranks at once.
  ncclResult_t Receive(std::span<const TensorView> parts, ncclComm_t communicator,
                       cudaStream_t stream) const {
    BATON_CHECK(parts.size() == ranks_.size());
    ncclResult_t result = nccl_.group_start();
    for (size_t rank = 1; rank < parts.size() && result == ncclSuccess; ++rank) {
      const TensorView& part = parts[rank];
      if (part.elements() == 0) continue;
      result = nccl_.receive(part.data(), part.elements(), TypeOf(part.dtype()),
                             static_cast<int>(rank), communicator, stream);
    }
    // A group that has begun ends, whatever happened in it.
    const ncclResult_t ended = nccl_.group_end();
    return result == ncclSuccess ? ended : result;
  }

  const Nccl nccl_;
  std::vector<Rank> ranks_;
  std::atomic<bool> aborted_ = false;
};

class NcclCollective final : public Collective {
 public:
  NcclCollective(std::shared_ptr<Group> group, uint32_t rank)
      : group_(std::move(group)), rank_(rank) {}

  uint32_t rank() const override { return rank_; }
  uint32_t size() const override { return group_->size(); }
  absl::Status AllReduceSum(const TensorView& x) override { return group_->AllReduceSum(rank_, x); }
  absl::Status Broadcast(const TensorView& x) override { return group_->Broadcast(rank_, x); }
  absl::Status GatherParts(const TensorView& part, std::span<const TensorView> parts) override {
    return group_->GatherParts(rank_, part, parts);
  }
  void Abort() override { group_->Abort(); }

 private:
  const std::shared_ptr<Group> group_;
  const uint32_t rank_;
};

absl::StatusOr<std::vector<std::unique_ptr<Collective>>> Make(std::span<Device* const> devices) {
  BATON_ASSIGN_OR_RETURN(const Nccl nccl, Nccl::Load());
  const auto group = std::make_shared<Group>(nccl);
  BATON_RETURN_IF_ERROR(group->Connect(devices));
  std::vector<std::unique_ptr<Collective>> ranks;
  for (uint32_t rank = 0; rank < group->size(); ++rank) {
    ranks.push_back(std::make_unique<NcclCollective>(group, rank));
  }
  return ranks;
}

}  // namespace

const CollectiveTable* NcclCollectives() {
  static constexpr CollectiveTable kTable = {.make = &Make};
  return &kTable;
}

}  // namespace baton
