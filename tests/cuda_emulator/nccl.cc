// The functions of NCCL that Baton calls, for the GPUs of one process.
//
// An operation of a rank runs like any other of its stream, and waits there for those of the other
// ranks. Whose stream nobody waits for is run by a thread of its own so far.
#include <nccl.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <vector>

#include "common/tensor/dtype.h"
#include "tests/cuda_emulator/failures.h"
#include "tests/cuda_emulator/numbers.h"
#include "tests/cuda_emulator/runtime.h"
#include "tests/cuda_emulator/streams.h"

namespace baton::emulation {
namespace {

DType TypeOf(ncclDataType_t type) {
  return type == ncclFloat32 ? DType::kF32 : type == ncclBfloat16 ? DType::kBF16 : DType::kF16;
}

// What a rank brings to a meeting.
struct Part {
  const void* from = nullptr;
  void* to = nullptr;
  size_t count = 0;
  DType type = DType::kF32;
};

// Of ranks, for one operation.
struct Meeting {
  std::map<int, Part> parts;  // Of those that have come.
  bool done = false;
};

// Ranks that meet, and for which time: all, or a sender and a receiver.
using MeetingKey = std::tuple<std::vector<int>, uint64_t>;
using Compute = std::function<void(const std::map<int, Part>& parts)>;

struct Group {
  bool aborted = false;
  std::vector<std::shared_ptr<Stream>> streams;  // The last that each rank has used.
  std::vector<std::thread> drivers;              // Of each rank: the last that ran its stream.
  std::set<int> driven;                          // Ranks whose driver is at work.
  int members = 0;
  std::map<MeetingKey, std::shared_ptr<Meeting>> meetings;
  std::map<std::tuple<std::vector<int>, int>, uint64_t> times;  // That a rank has met these.
};

// Lets a thread run the stream of a rank until the rank has come.
void Drive(Group& group, const std::shared_ptr<Meeting>& meeting, int rank) {
  const auto index = static_cast<size_t>(rank);
  const std::shared_ptr<Stream> stream = group.streams[index];
  if (stream == nullptr || stream->idle() || stream->running()) return;
  if (!group.driven.insert(rank).second) return;
  std::thread& driver = group.drivers[index];
  if (driver.joinable()) driver.join();  // It has given up the lock, and ends.
  driver = std::thread([&group, meeting, rank, stream] {
    const std::lock_guard lock(RuntimeMutex());
    while (!group.aborted && !meeting->parts.contains(rank) && !stream->idle()) stream->RunNext();
    group.driven.erase(rank);
    NotifyOthers();
  });
}

// The operation of one rank. The last that comes computes for all. It ends also without the others
// if the rank's own GPU is lost.
void Meet(const std::shared_ptr<Group>& group, const std::vector<int>& ranks, int rank,
          const Part& part, const Compute& compute) {
  const MeetingKey key(ranks, group->times[{ranks, rank}]++);
  std::shared_ptr<Meeting>& found = group->meetings[key];
  if (found == nullptr) found = std::make_shared<Meeting>();
  const std::shared_ptr<Meeting> meeting = found;
  meeting->parts[rank] = part;
  if (meeting->parts.size() == ranks.size()) {
    compute(meeting->parts);
    meeting->done = true;
    group->meetings.erase(key);
  }
  NotifyOthers();
  const int device = group->streams[static_cast<size_t>(rank)]->device();
  while (!meeting->done && !group->aborted && !IsLost(device)) {
    for (const int other : ranks) {
      if (!meeting->parts.contains(other)) Drive(*group, meeting, other);
    }
    WaitForOthers();
  }
}

}  // namespace
}  // namespace baton::emulation

struct ncclComm {
  std::shared_ptr<baton::emulation::Group> group;
  int rank = 0;
};

namespace baton::emulation {
namespace {

std::vector<int> AllRanks(const Group& group) {
  std::vector<int> ranks(group.streams.size());
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int>(i);
  return ranks;
}

ncclResult_t Submit(ncclComm_t rank, const std::vector<int>& ranks, const Part& part,
                    cudaStream_t stream, Compute compute) {
  const std::lock_guard lock(RuntimeMutex());
  if (IsLost(StreamOf(stream)->device())) return ncclUnhandledCudaError;
  rank->group->streams[static_cast<size_t>(rank->rank)] = StreamOf(stream);
  StreamOf(stream)->Submit(
      [group = rank->group, ranks, rank = rank->rank, part, compute = std::move(compute)] {
        Meet(group, ranks, rank, part, compute);
      });
  return ncclSuccess;
}

void CopyFrom(int sender, const std::map<int, Part>& parts) {
  const Part& sent = parts.at(sender);
  for (const auto& [rank, part] : parts) {
    if (part.count == sent.count && part.type == sent.type) continue;
    std::fprintf(stderr, "NCCL emulator: ranks %d and %d disagree on what is sent\n", sender, rank);
    std::abort();
  }
  for (const auto& [rank, part] : parts) {
    if (rank != sender || part.to != part.from) {
      if (part.to != nullptr) std::memmove(part.to, sent.from, sent.count * DTypeBytes(sent.type));
    }
  }
}

void Leave(ncclComm_t rank, bool abort) {
  std::vector<std::thread> drivers;
  {
    const std::lock_guard lock(RuntimeMutex());
    Group& group = *rank->group;
    group.aborted = group.aborted || abort;
    NotifyOthers();
    if (--group.members == 0) drivers = std::move(group.drivers);
  }
  for (std::thread& driver : drivers) {
    if (driver.joinable()) driver.join();
  }
  delete rank;
}

}  // namespace

// What follows are the functions of the library.
extern "C" {

ncclResult_t ncclCommInitAll(ncclComm_t* ranks, int count, const int* devices) {
  // Real ones refuse two ranks on one GPU.
  if (std::set<int>(devices, devices + count).size() != static_cast<size_t>(count)) {
    return ncclInvalidUsage;
  }
  const auto group = std::make_shared<Group>();
  group->members = count;
  group->streams.resize(static_cast<size_t>(count));
  group->drivers.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) ranks[i] = new ncclComm{group, i};
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t rank) {
  Leave(rank, /*abort=*/false);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t rank) {
  Leave(rank, /*abort=*/true);
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  if (result == ncclUnhandledCudaError) return "unhandled cuda error";
  return result == ncclSuccess ? "success" : "an error of the emulated NCCL";
}

ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclGroupEnd() { return ncclSuccess; }

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t rank, cudaStream_t stream) {
  if (operation != ncclSum) return ncclInvalidArgument;
  return Submit(rank, AllRanks(*rank->group), {from, to, count, TypeOf(type)}, stream,
                [count, type = TypeOf(type)](const std::map<int, Part>& parts) {
                  for (size_t i = 0; i < count; ++i) {
                    float sum = 0.0f;
                    for (const auto& [other, part] : parts) sum += NumberAt(part.from, type, i);
                    for (const auto& [other, part] : parts) StoreNumber(part.to, type, i, sum);
                  }
                });
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t rank, cudaStream_t stream) {
  return Submit(rank, AllRanks(*rank->group), {from, to, count, TypeOf(type)}, stream,
                [root](const std::map<int, Part>& parts) { CopyFrom(root, parts); });
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t rank, cudaStream_t stream) {
  const int sender = rank->rank;
  return Submit(rank, {sender, peer}, {from, nullptr, count, TypeOf(type)}, stream,
                [sender](const std::map<int, Part>& parts) { CopyFrom(sender, parts); });
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t rank,
                      cudaStream_t stream) {
  return Submit(rank, {peer, rank->rank}, {nullptr, to, count, TypeOf(type)}, stream,
                [peer](const std::map<int, Part>& parts) { CopyFrom(peer, parts); });
}

}  // extern "C"

}  // namespace baton::emulation
