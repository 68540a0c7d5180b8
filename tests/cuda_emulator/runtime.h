// What the emulated libraries need of the emulated CUDA runtime.
#ifndef BATON_TESTS_CUDA_EMULATOR_RUNTIME_H_
#define BATON_TESTS_CUDA_EMULATOR_RUNTIME_H_

#include <driver_types.h>

#include <functional>
#include <memory>
#include <mutex>

namespace baton::emulation {

class Stream;

// Held by every function of the emulated libraries, and while operations run.
std::mutex& RuntimeMutex();
// REQUIRES: the mutex is held. Gives it up until somebody calls NotifyOthers().
void WaitForOthers();
void NotifyOthers();
// REQUIRES: the mutex is held.
std::shared_ptr<Stream> StreamOf(cudaStream_t stream);

// Puts a grid of `thread` on the stream of `config`.
cudaError_t LaunchThreads(const cudaLaunchConfig_t& config, const void* kernel,
                          std::function<void()> thread);

// Puts it on a stream. False: its GPU is lost.
bool SubmitTo(cudaStream_t stream, std::function<void()> operation);

}  // namespace baton::emulation

#endif  // BATON_TESTS_CUDA_EMULATOR_RUNTIME_H_
