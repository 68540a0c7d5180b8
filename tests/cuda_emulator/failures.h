// What goes wrong with emulated GPUs, if the environment of a process says so:
//
//   BATON_EMULATED_GPU_MEMORY=BYTES      each GPU has no more memory
//   BATON_EMULATED_PINNED_MEMORY=BYTES   no more of the host's memory can be pinned
//   BATON_EMULATED_GPU_FAILS_WHEN=FILE   once FILE is there, the GPU of the next operation is lost,
//                                        or, if FILE holds a number, so many operations later
//   BATON_EMULATED_GPU_HANGS_WHILE=FILE  while FILE is there, no operation ends
//
// One GPU of a process is lost at most, and for good: its operations do nothing from then on, and
// all calls that need it return kLostError, as after a kernel that wrote where it must not.
#ifndef BATON_TESTS_CUDA_EMULATOR_FAILURES_H_
#define BATON_TESTS_CUDA_EMULATOR_FAILURES_H_

#include <driver_types.h>

#include <cstddef>

namespace baton::emulation {

inline constexpr cudaError_t kLostError = cudaErrorIllegalAddress;

size_t GpuMemoryMax();
size_t PinnedMemoryMax();

// Any thread.
bool IsLost(int device);
// Whether this GPU does its next operation, which may take its time. REQUIRES: the runtime's mutex
// is held.
bool DoesNext(int device);

}  // namespace baton::emulation

#endif  // BATON_TESTS_CUDA_EMULATOR_FAILURES_H_
