#include "tests/bench/cuda_bench_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

namespace baton::cuda {
namespace {

// Several times the second-level cache: 50 MB of an H100.
constexpr size_t kColdBytes = 256u << 20;
constexpr size_t kSetsMax = 64;
// One replay takes about this long, which the gap between two replays does not change.
constexpr double kReplaySeconds = 0.002;
constexpr size_t kCallsMax = 300;
constexpr int kWarmUps = 3;

// Milliseconds between neighbouring events.
class Events {
 public:
  explicit Events(size_t count) : events_(count) {
    for (cudaEvent_t& event : events_) Must(cudaEventCreate(&event), "creating an event");
  }
  ~Events() {
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;

  void Record(size_t i, cudaStream_t stream) {
    Must(cudaEventRecord(events_[i], stream), "recording an event");
  }
  // Waits for event i + 1. Seconds.
  double Between(size_t i) const {
    Must(cudaEventSynchronize(events_[i + 1]), "waiting for a kernel");
    float milliseconds = 0;
    Must(cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]), "reading an event");
    return milliseconds * 1e-3;
  }

 private:
  std::vector<cudaEvent_t> events_;
};

}  // namespace

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  Must(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "allocating memory");
}

Runner::Runner(Options options) : options_(std::move(options)) {
  Must(cudaSetDevice(0), "looking for a GPU");
  cudaDeviceProp properties{};
  Must(cudaGetDeviceProperties(&properties, 0), "reading the GPU's properties");
  launch_.multiprocessors = properties.multiProcessorCount;
  launch_.compute_capability = properties.major * 10 + properties.minor;
  Must(cudaStreamCreateWithFlags(&launch_.stream, cudaStreamNonBlocking), "creating a stream");
  std::printf("# %s, %d multiprocessors, %.0f GB, %.0f MB of L2\n", properties.name,
              properties.multiProcessorCount, static_cast<double>(properties.totalGlobalMem) * 1e-9,
              properties.l2CacheSize * 1e-6);
}

Launch Runner::WithoutOverlap() const {
  Launch launch = launch_;
  launch.compute_capability = 80;
  return launch;
}

bool Runner::Wanted(const std::string& name) const {
  return options_.only.empty() ||
         std::any_of(options_.only.begin(), options_.only.end(),
                     [&name](const std::string& only) { return name.starts_with(only); });
}

bool Runner::WantedGroup(const std::string& group) const {
  return Wanted(group) ||
         std::any_of(options_.only.begin(), options_.only.end(),
                     [&group](const std::string& only) { return only.starts_with(group); });
}

size_t Runner::SetsFor(size_t bytes, size_t available) {
  const size_t wanted = std::clamp<size_t>((kColdBytes + bytes - 1) / bytes, 2, kSetsMax);
  return std::max<size_t>(1, std::min(wanted, available / bytes));
}

std::optional<double> Runner::Measure(const std::string& name, size_t sets,
                                      const Call& call) const {
  // The first call loads the kernel.
  if (const cudaError_t error = call(0); error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    LeftOut(name, cudaGetErrorString(error));
    return std::nullopt;
  }
  Must(cudaStreamSynchronize(launch_.stream), name.c_str());
  Events events(2);
  events.Record(0, launch_.stream);
  Must(call(1), name.c_str());
  events.Record(1, launch_.stream);
  const double once = std::max(events.Between(0), 1e-6);
  const double replay_seconds = options_.quick ? kReplaySeconds / 2 : kReplaySeconds;
  const size_t calls = std::clamp(static_cast<size_t>(std::ceil(replay_seconds / once)),
                                  std::min(sets, kCallsMax), kCallsMax);
  std::optional<double> seconds = MeasureGraph(call, calls);
  if (!seconds.has_value()) {
    std::printf("# %s: cannot be recorded; the host's launches are measured with it\n",
                name.c_str());
    seconds = MeasureLaunches(call, calls);
  }
  return seconds;
}

std::optional<double> Runner::MeasureGraph(const Call& call, size_t calls) const {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Must(cudaStreamBeginCapture(launch_.stream, cudaStreamCaptureModeThreadLocal), "recording");
  cudaError_t error = cudaSuccess;
  for (size_t i = 0; i < calls && error == cudaSuccess; ++i) error = call(i);
  const cudaError_t end_error = cudaStreamEndCapture(launch_.stream, &graph);
  if (error == cudaSuccess) error = end_error;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&executable, graph, 0);
  std::optional<double> seconds;
  if (error == cudaSuccess) {
    seconds = MedianOfReplays([&] { return cudaGraphLaunch(executable, launch_.stream); });
    *seconds /= static_cast<double>(calls);
    cudaGraphExecDestroy(executable);
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  static_cast<void>(cudaGetLastError());
  return seconds;
}

double Runner::MeasureLaunches(const Call& call, size_t calls) const {
  const double seconds = MedianOfReplays([&] {
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < calls && error == cudaSuccess; ++i) error = call(i);
    return error;
  });
  return seconds / static_cast<double>(calls);
}

// All replays are put on the stream at once: between two of them the GPU waits for nobody.
double Runner::MedianOfReplays(const std::function<cudaError_t()>& replay) const {
  const size_t repeats = options_.quick ? 7 : 21;
  Events events(repeats + 1);
  for (int i = 0; i < kWarmUps; ++i) Must(replay(), "warming up");
  events.Record(0, launch_.stream);
  for (size_t i = 0; i < repeats; ++i) {
    Must(replay(), "replaying");
    events.Record(i + 1, launch_.stream);
  }
  std::vector<double> seconds(repeats);
  for (size_t i = 0; i < repeats; ++i) seconds[i] = events.Between(i);
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[repeats / 2];
}

void Runner::Print(const std::string& name, double seconds, const Work& work) const {
  std::printf("%-40s %12.2f us", name.c_str(), seconds * 1e6);
  const double rate = work.amount / seconds;
  switch (work.unit) {
    case Unit::kBytes:
      std::printf(" %10.1f GB/s   ", rate * 1e-9);
      break;
    case Unit::kFlops:
      std::printf(" %10.1f TFLOP/s", rate * 1e-12);
      break;
    case Unit::kNone:
      break;
  }
  if (work.limit > 0) std::printf(" %6.1f %%", 100 * rate / work.limit);
  std::printf("\n");
  std::fflush(stdout);
}

void Runner::Report(const std::string& name, size_t sets, const Work& work,
                    const Call& call) const {
  if (!Wanted(name)) return;
  const std::optional<double> seconds = Measure(name, sets, call);
  if (seconds.has_value()) Print(name, *seconds, work);
}

void Runner::LeftOut(const std::string& name, const char* reason) const {
  if (Wanted(name)) std::printf("%-40s left out: %s\n", name.c_str(), reason);
}

}  // namespace baton::cuda
