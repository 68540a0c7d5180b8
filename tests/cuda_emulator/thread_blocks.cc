#include "tests/cuda_emulator/thread_blocks.h"

#include <array>
#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/fiber_stacks.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace baton::emulation {
namespace {

constexpr size_t kSharedAlignment = 128;
constexpr std::byte kUnwritten{0xff};  // NaN, in every float type.

struct Warp {
  uint32_t live = 0;     // Lanes that have not ended, a bit for each.
  uint32_t ready = 0;    // Lanes that can go on.
  uint32_t arrived = 0;  // Lanes in the operation that is under way.
  WarpOperation operation = WarpOperation::kSync;
  // The operations of a warp take the two in turn: while one is read, the next is written.
  uint32_t turn = 0;
  std::array<uint32_t, 2> present = {};  // Lanes that were in it.
  alignas(64) std::array<std::array<std::byte, kSlotBytes * kLanes>, 2> slots = {};
};

struct PendingCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;  // Null: zeros.
  size_t bytes = 0;
};

struct Thread {
  boost::context::fiber fiber;
  boost::context::stack_context stack;
  uint3 index = {};
  Warp* warp = nullptr;
  uint32_t lane = 0;
  bool waits_for_block = false;
  std::vector<PendingCopy> copies;
};

// The block of threads that runs.
class Block {
 public:
  // `order` chooses among the orders in which threads may run.
  Block(const Grid& grid, uint32_t order)
      : grid_(grid),
        count_(grid.threads.x * grid.threads.y * grid.threads.z),
        order_(order),
        threads_(count_),
        warps_((count_ + kLanes - 1) / kLanes),
        memory_(grid.shared_bytes + kSharedAlignment, kUnwritten) {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    shared_ = memory_.data() + (kSharedAlignment - at % kSharedAlignment) % kSharedAlignment;
  }

  void Run() {
    live_ = count_;
    for (uint32_t i = 0; i < count_; ++i) Prepare(i);
    while (live_ > 0) {
      if (!RunReady()) Fail("its threads wait for each other");
    }
  }

  Thread& current() { return *current_; }
  std::byte* shared() { return shared_; }
  size_t shared_bytes() const { return grid_.shared_bytes; }

  void SyncBlock() {
    current_->waits_for_block = true;
    ++at_barrier_;
    if (!ReleaseBlock()) Wait();
  }

  WarpView Exchange(WarpOperation operation, const void* data, size_t bytes) {
    Warp& warp = *current_->warp;
    const uint32_t lane = current_->lane;
    if (bytes > kSlotBytes) Fail("a lane hands over too much");
    if (warp.arrived != 0 && warp.operation != operation) {
      Fail("the lanes of a warp are in different operations");
    }
    warp.operation = operation;
    const uint32_t turn = warp.turn;
    std::byte* const slots = warp.slots[turn].data();
    if (bytes > 0) std::memcpy(slots + lane * kSlotBytes, data, bytes);
    warp.arrived |= 1u << lane;
    if (!ReleaseWarp(warp)) Wait();
    return WarpView(slots, warp.present[turn]);
  }

  [[noreturn]] void Fail(const char* what) {
    std::string waiting;
    for (const Thread& thread : threads_) {
      if ((thread.warp->live >> thread.lane & 1) == 0 || &thread == current_) continue;
      const bool in_warp = (thread.warp->arrived >> thread.lane & 1) != 0;
      if (waiting.size() < 2000 && (thread.waits_for_block || in_warp)) {
        waiting += " " + std::to_string(thread.index.x) + (thread.waits_for_block ? "b" : "w");
      }
    }
    const uint3 at = current_ == nullptr ? uint3{} : current_->index;
    std::fprintf(stderr,
                 "CUDA emulator: block (%u, %u, %u), thread (%u, %u, %u): %s\n"
                 "threads that wait, b for the block and w for the warp:%s\n",
                 blockIdx.x, blockIdx.y, blockIdx.z, at.x, at.y, at.z, what, waiting.c_str());
    std::abort();
  }

 private:
  void Prepare(uint32_t i) {
    Thread& thread = threads_[i];
    thread.index = {i % grid_.threads.x, i / grid_.threads.x % grid_.threads.y,
                    i / grid_.threads.x / grid_.threads.y};
    thread.warp = &warps_[i / kLanes];
    thread.lane = i % kLanes;
    thread.warp->live |= 1u << thread.lane;
    thread.warp->ready |= 1u << thread.lane;
    KeptStacks stacks;
    thread.stack = stacks.allocate();
    thread.fiber = boost::context::fiber(
        std::allocator_arg,
        boost::context::preallocated(thread.stack.sp, thread.stack.size, thread.stack), stacks,
        [this](boost::context::fiber&& scheduler) {
          scheduler_ = std::move(scheduler);
          EnterThread();
          grid_.thread();
          End();
          return std::move(scheduler_);
        });
  }

  // False: nobody can run.
  bool RunReady() {
    bool some = false;
    const auto warps = static_cast<uint32_t>(warps_.size());
    for (uint32_t i = 0; i < warps; ++i) {
      Warp& warp = warps_[(i + order_ / 2) % warps];
      const auto first = static_cast<uint32_t>(&warp - warps_.data()) * kLanes;
      while (warp.ready != 0) {
        some = true;
        const int lane =
            order_ % 2 == 0 ? __builtin_ctz(warp.ready) : 31 - __builtin_clz(warp.ready);
        warp.ready &= ~(1u << lane);
        Resume(threads_[first + static_cast<uint32_t>(lane)]);
      }
    }
    return some;
  }

  void Resume(Thread& thread) {
    current_ = &thread;
    threadIdx = thread.index;
    LeaveScheduler(thread);
    thread.fiber = std::move(thread.fiber).resume();
    EnterScheduler();
    current_ = nullptr;
  }

  // Until somebody makes the thread ready.
  void Wait() {
    LeaveThread();
    scheduler_ = std::move(scheduler_).resume();
    EnterThread();
  }

  void End() {
    Warp& warp = *current_->warp;
    warp.live &= ~(1u << current_->lane);
    --live_;
    if (warp.live != 0) ReleaseWarp(warp);
    if (live_ > 0) ReleaseBlock();
    LeaveThread();
  }

  // True if the warp's operation is complete; the other lanes are ready then.
  bool ReleaseWarp(Warp& warp) {
    if (warp.arrived != warp.live) return false;
    warp.present[warp.turn] = warp.arrived;
    warp.ready |= warp.arrived & ~ThisLaneIn(warp);
    warp.arrived = 0;
    warp.turn ^= 1;
    return true;
  }

  bool ReleaseBlock() {
    if (at_barrier_ == 0 || at_barrier_ != live_) return false;
    at_barrier_ = 0;
    for (Thread& thread : threads_) {
      if (!std::exchange(thread.waits_for_block, false) || &thread == current_) continue;
      thread.warp->ready |= 1u << thread.lane;
    }
    return true;
  }

  uint32_t ThisLaneIn(const Warp& warp) const {
    return current_->warp == &warp ? 1u << current_->lane : 0;
  }

  // AddressSanitizer must know on which stack the program is.
#if defined(__SANITIZE_ADDRESS__)
  void LeaveScheduler(const Thread& thread) {
    const auto* const top = static_cast<const std::byte*>(thread.stack.sp);
    __sanitizer_start_switch_fiber(nullptr, top - thread.stack.size, thread.stack.size);
  }
  void EnterScheduler() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
  void LeaveThread() {
    __sanitizer_start_switch_fiber(nullptr, scheduler_bottom_, scheduler_bytes_);
  }
  void EnterThread() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom_, &scheduler_bytes_);
  }
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_bytes_ = 0;
#else
  void LeaveScheduler(const Thread& /*thread*/) {}
  void EnterScheduler() {}
  void LeaveThread() {}
  void EnterThread() {}
#endif

  const Grid& grid_;
  const uint32_t count_;
  const uint32_t order_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::byte> memory_;
  std::byte* shared_ = nullptr;
  uint32_t live_ = 0;
  uint32_t at_barrier_ = 0;
  Thread* current_ = nullptr;
  boost::context::fiber scheduler_;
};

Block* running = nullptr;

}  // namespace

void RunGrid(const Grid& grid) {
  static uint32_t grids = 0;
  const uint32_t order = grids++;
  gridDim = grid.blocks;
  blockDim = grid.threads;
  const uint32_t count = grid.blocks.x * grid.blocks.y * grid.blocks.z;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t index = order % 2 == 0 ? i : count - 1 - i;
    blockIdx = {index % grid.blocks.x, index / grid.blocks.x % grid.blocks.y,
                index / grid.blocks.x / grid.blocks.y};
    Block block(grid, order + i);
    running = &block;
    block.Run();
    running = nullptr;
  }
}

void SyncBlock() { running->SyncBlock(); }

WarpView Exchange(WarpOperation operation, const void* data, size_t bytes) {
  return running->Exchange(operation, data, bytes);
}

uint32_t ThisLane() { return running->current().lane; }

std::byte* DynamicSharedMemory() { return running->shared(); }

std::byte* DynamicSharedMemory(size_t offset, size_t bytes) {
  if (offset + bytes > running->shared_bytes()) {
    running->Fail("it uses more shared memory than the launch asked for");
  }
  return running->shared() + offset;
}

void StartCopy(std::byte* to, const std::byte* from, size_t bytes) {
  running->current().copies.push_back({to, from, bytes});
}

void FinishCopies() {
  for (const PendingCopy& copy : running->current().copies) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  running->current().copies.clear();
}

void KernelFailure(const char* what) { running->Fail(what); }

}  // namespace baton::emulation
