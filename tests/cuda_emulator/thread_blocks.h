// A kernel's grid on the CPU: every thread of a block of threads is a fiber. What CUDA promises of
// warps and barriers holds, and nothing more: a thread runs until it must wait for others, and in
// which order threads, warps and blocks come changes from grid to grid. A kernel that forgets a
// barrier therefore computes something else than on a GPU that it happened to work on.
//
// What a kernel may not do stops the process, with the kernel's threads in the message: a barrier
// that some threads never reach, lanes of a warp that are in different operations, a look at a lane
// that has ended, shared memory beyond what the launch asked for.
//
// One grid runs at a time; the caller sees to that.
#ifndef BATON_TESTS_CUDA_EMULATOR_THREAD_BLOCKS_H_
#define BATON_TESTS_CUDA_EMULATOR_THREAD_BLOCKS_H_

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace baton::emulation {

constexpr uint32_t kLanes = 32;

struct Grid {
  dim3 blocks;
  dim3 threads;  // Of a block, at most 1024.
  size_t shared_bytes = 0;
  std::function<void()> thread;  // The kernel, with its arguments.
};

// Returns when all threads have ended.
void RunGrid(const Grid& grid);

// ---- For threads of a grid ----

// Stops the process.
[[noreturn]] void KernelFailure(const char* what);

// __syncthreads(): until all threads of the block that have not ended are here.
void SyncBlock();

// Operations of a whole warp. All lanes that have not ended must call the same.
enum class WarpOperation { kSync, kShuffle, kVote, kMatrices, kTransposition, kProduct };

constexpr size_t kSlotBytes = 64;

// What the lanes of a warp have handed over in one operation. Valid until the lane's next but one.
class WarpView {
 public:
  WarpView(const std::byte* slots, uint32_t present) : slots_(slots), present_(present) {}

  // REQUIRES: the lane has not ended.
  template <typename T>
  const T& Of(uint32_t lane) const {
    if ((present_ >> lane & 1) == 0) KernelFailure("it looks at a lane that has ended");
    return *reinterpret_cast<const T*>(slots_ + lane * kSlotBytes);
  }
  // Of all lanes, none of which has ended.
  template <typename T>
  const T* All() const {
    static_assert(sizeof(T) == kSlotBytes);
    if (present_ != ~0u) KernelFailure("it looks at a lane that has ended");
    return reinterpret_cast<const T*>(slots_);
  }
  // A bit for each lane that has not ended.
  uint32_t present() const { return present_; }

 private:
  const std::byte* slots_;
  uint32_t present_;
};

// Hands over at most kSlotBytes and returns when all lanes have.
WarpView Exchange(WarpOperation operation, const void* data, size_t bytes);
uint32_t ThisLane();

// The shared memory that the launch asked for, 128-byte aligned.
std::byte* DynamicSharedMemory();
// REQUIRES: [offset, offset + bytes) was asked for.
std::byte* DynamicSharedMemory(size_t offset, size_t bytes);

// Copies that the thread has started, or zeros where `from` is null, and finishes in order.
void StartCopy(std::byte* to, const std::byte* from, size_t bytes);
void FinishCopies();

}  // namespace baton::emulation

// What CUDA C++ gives a thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

#endif  // BATON_TESTS_CUDA_EMULATOR_THREAD_BLOCKS_H_
