// How cuda_bench measures: the GPU's memory full of random numbers, the time of a call, the lines
// that it prints. One thread, one GPU, one process.
#ifndef BATON_TESTS_BENCH_CUDA_BENCH_RUNNER_H_
#define BATON_TESTS_BENCH_CUDA_BENCH_RUNNER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/kernels/cuda/launch.h"

namespace baton::cuda {

// Ends the process unless `error` is success.
void Must(cudaError_t error, const char* what);

// Memory of the device, which goes with its owner. Ends the process if there is not enough.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);
  template <typename T>
  explicit DeviceMemory(const std::vector<T>& values) : DeviceMemory(values.size() * sizeof(T)) {
    Must(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "copying to the device");
    // Kernels run on a stream that does not wait for the end of this by itself.
    Must(cudaDeviceSynchronize(), "copying to the device");
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* at(size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + byte_offset);
  }

 private:
  void* data_ = nullptr;
  const size_t bytes_;
};

// What work is counted in.
enum class Unit { kBytes, kFlops, kNone };
// Work that was done, and the most of it that the GPU does in a second; 0: not measured.
struct Work {
  double amount = 0;
  Unit unit = Unit::kNone;
  double limit = 0;
};

class Runner {
 public:
  struct Options {
    std::vector<std::string> only;  // Beginnings of names; empty: all.
    bool quick = false;
  };
  // What is measured: puts the i-th call on the stream. Calls whose i differ use other memory,
  // until it begins again.
  using Call = std::function<cudaError_t(size_t i)>;

  // Uses the first GPU. Ends the process if there is none.
  explicit Runner(Options options);
  ~Runner() { cudaStreamDestroy(launch_.stream); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  const Launch& launch() const { return launch_; }
  // Its kernels start only when the one before them has ended.
  Launch WithoutOverlap() const;
  bool Wanted(const std::string& name) const;
  // Whether any result of a group can be wanted.
  bool WantedGroup(const std::string& group) const;

  // How many sets of `bytes` a call should go through so that nothing comes from the cache.
  static size_t SetsFor(size_t bytes, size_t available);

  // Seconds of one of many calls, of which `sets` use different memory: the median. Calls are
  // recorded into a graph, so that nothing waits for the host. Nothing, and a line that says why,
  // if it cannot be done.
  std::optional<double> Measure(const std::string& name, size_t sets, const Call& call) const;
  void Print(const std::string& name, double seconds, const Work& work) const;
  // Both, if the result is wanted.
  void Report(const std::string& name, size_t sets, const Work& work, const Call& call) const;
  void LeftOut(const std::string& name, const char* reason) const;

 private:
  std::optional<double> MeasureGraph(const Call& call, size_t calls) const;
  double MeasureLaunches(const Call& call, size_t calls) const;
  double MedianOfReplays(const std::function<cudaError_t()>& replay) const;

  const Options options_;
  Launch launch_;
};

}  // namespace baton::cuda

#endif  // BATON_TESTS_BENCH_CUDA_BENCH_RUNNER_H_
