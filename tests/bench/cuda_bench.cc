// cuda_bench: what one GPU can do, and each CUDA kernel as a share of that.
//
//   cuda_bench [--quick] [--only=BEGINNING[,BEGINNING...]]
//
// One line per result: its name, the median time of a call, the rate, and the share of the limit
// that the kernel meets first: reading memory, copying memory, or the products of large matrices.
// Numbers are random, and calls go through more memory than the cache holds.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tests/bench/cuda_bench_cases.h"
#include "tests/bench/cuda_bench_device.h"

namespace baton::cuda {

RandomMemory::RandomMemory(const Launch& launch) {
  Must(FillNormal(launch, DType::kBF16, weights.bytes() / 2, 1.0f, /*seed=*/1, weights.at()),
       "filling memory");
  Must(FillNormal(launch, DType::kBF16, activations.bytes() / 2, 1.0f, 2, activations.at()),
       "filling memory");
  FillFloats(launch);
  Must(FillNormal(launch, DType::kBF16, out.bytes() / 2, 1.0f, 4, out.at()), "filling memory");
  Must(cudaStreamSynchronize(launch.stream), "filling memory");
}

void RandomMemory::FillFloats(const Launch& launch) const {
  Must(FillNormal(launch, DType::kF32, floats.bytes() / 4, 2.0f, 3, floats.at()), "filling memory");
}

namespace {

constexpr size_t kGigabyte = size_t{1} << 30;
constexpr uint32_t kRowsMany = 4096;

double MeasureTransfer(const Runner& runner, const RandomMemory& memory, const std::string& name,
                       cudaMemcpyKind kind, void* host, size_t bytes) {
  const std::optional<double> seconds = runner.Measure(name, 1, [&](size_t i) {
    std::byte* const device = memory.out.at((i % 2) * bytes);
    const bool to_device = kind == cudaMemcpyHostToDevice;
    return cudaMemcpyAsync(to_device ? device : host, to_device ? host : device, bytes, kind,
                           runner.launch().stream);
  });
  if (!seconds.has_value()) return 0;
  runner.Print(name, *seconds, {static_cast<double>(bytes), Unit::kBytes});
  return static_cast<double>(bytes) / *seconds;
}

void MeasureTransfers(const Runner& runner, const RandomMemory& memory) {
  if (!runner.Wanted("limit/host_to_device") && !runner.Wanted("limit/device_to_host")) return;
  const size_t bytes = kGigabyte / 4;
  void* host = nullptr;
  Must(cudaMallocHost(&host, bytes), "allocating pinned memory");
  // In this order: what goes to the device came from it.
  MeasureTransfer(runner, memory, "limit/device_to_host", cudaMemcpyDeviceToHost, host, bytes);
  MeasureTransfer(runner, memory, "limit/host_to_device", cudaMemcpyHostToDevice, host, bytes);
  Must(cudaFreeHost(host), "freeing pinned memory");
}

// A batch of one sequence from position 0 on, in blocks that follow each other.
class OneSequence {
 public:
  explicit OneSequence(uint32_t rows)
      : rows_(rows),
        place_(std::vector<DeviceSequence>{{.row = 0, .count = rows, .position = 0, .blocks = 0}}),
        blocks_(Ascending((rows + kBlockTokens - 1) / kBlockTokens)),
        row_sequence_(std::vector<uint32_t>(rows, 0)) {}

  SequenceTable Table() const {
    return {.sequences = place_.at<DeviceSequence>(),
            .block_table = blocks_.at<uint32_t>(),
            .row_sequence = row_sequence_.at<uint32_t>(),
            .count = 1,
            .rows = rows_,
            .count_max = rows_,
            .end_max = rows_};
  }

 private:
  static std::vector<uint32_t> Ascending(uint32_t count) {
    std::vector<uint32_t> values(count);
    for (uint32_t i = 0; i < count; ++i) values[i] = i;
    return values;
  }

  const uint32_t rows_;
  const DeviceMemory place_;
  const DeviceMemory blocks_;
  const DeviceMemory row_sequence_;
};

// In place again and again: the angles must be true ones, or the numbers grow.
void BenchRope(const Runner& runner, const RandomMemory& memory, const Limits& limits,
               uint32_t rows) {
  const std::string name = "rope_write_kv/" + std::to_string(rows);
  if (!runner.Wanted(name)) return;
  const uint32_t half = kHeadDim / 2;
  std::vector<float> cosines(size_t{rows} * half);
  std::vector<float> sines(cosines.size());
  for (size_t i = 0; i < cosines.size(); ++i) {
    cosines[i] = std::cos(static_cast<float>(i));
    sines[i] = std::sin(static_cast<float>(i));
  }
  const DeviceMemory device_cosines(cosines);
  const DeviceMemory device_sines(sines);
  const OneSequence sequence(rows);
  const size_t q_bytes = size_t{rows} * kHeads * kHeadDim * 2;
  const size_t kv_bytes = size_t{rows} * kKvHeads * kHeadDim * 2;
  const size_t sets = Runner::SetsFor(q_bytes, kGigabyte / 4);
  const size_t block_bytes = size_t{4} * kKvHeads * kBlockTokens * kHeadDim;
  const size_t pages_bytes = (rows + kBlockTokens - 1) / kBlockTokens * block_bytes;
  const size_t bytes = 2 * q_bytes + 4 * kv_bytes + 2 * cosines.size() * sizeof(float);
  const auto call = [&](size_t i) {
    const size_t set = i % sets;
    const DevicePages pages = {.data = memory.weights.at(set * pages_bytes),
                               .block_bytes = block_bytes,
                               .dtype = DType::kBF16,
                               .kv_heads = kKvHeads,
                               .head_dim = kHeadDim,
                               .block_tokens = kBlockTokens};
    return RopeWriteKv(
        runner.launch(), device_cosines.at<float>(), device_sines.at<float>(), half, kHeads,
        memory.out.at(set * q_bytes), memory.activations.at(set * 2 * kv_bytes),
        memory.activations.at((set * 2 + 1) * kv_bytes), DType::kBF16, sequence.Table(), pages);
  };
  runner.Report(name, sets, {static_cast<double>(bytes), Unit::kBytes, limits.copy_bytes}, call);
}

void BenchNorms(const Runner& runner, const RandomMemory& memory, const Limits& limits,
                uint32_t rows) {
  const std::string norm = "rms_norm/" + std::to_string(rows);
  const std::string add_norm = "add_rms_norm/" + std::to_string(rows);
  const double count = static_cast<double>(rows) * kHidden;
  const size_t bytes = size_t{rows} * kHidden * sizeof(float);
  const size_t sets = Runner::SetsFor(bytes, memory.floats.bytes() - kHidden * sizeof(float));
  const float* const weight = memory.floats.at<float>(sets * bytes);
  const auto x = [&](size_t i) { return memory.floats.at<float>((i % sets) * bytes); };
  const auto y = [&](size_t i) { return memory.activations.at((i % sets) * bytes / 2); };
  const auto out = [&](size_t i) { return memory.out.at((i % sets) * bytes / 2); };
  runner.Report(norm, sets, {count * 6, Unit::kBytes, limits.copy_bytes}, [&](size_t i) {
    return RmsNorm(runner.launch(), x(i), DType::kF32, weight, 1e-5f, rows, kHidden, out(i),
                   DType::kBF16);
  });
  runner.Report(add_norm, sets, {count * 12, Unit::kBytes, limits.copy_bytes}, [&](size_t i) {
    return AddRmsNorm(runner.launch(), y(i), DType::kBF16, x(i), weight, 1e-5f, rows, kHidden,
                      out(i));
  });
}

void BenchSiluMul(const Runner& runner, const RandomMemory& memory, const Limits& limits,
                  uint32_t rows) {
  const std::string name = "silu_mul/" + std::to_string(rows);
  const size_t count = size_t{rows} * kIntermediate;
  const size_t sets = Runner::SetsFor(4 * count, memory.activations.bytes());
  runner.Report(name, sets, {6.0 * static_cast<double>(count), Unit::kBytes, limits.copy_bytes},
                [&](size_t i) {
                  const size_t at = (i % sets) * 4 * count;
                  return SiluMul(runner.launch(), memory.activations.at(at),
                                 memory.activations.at(at + 2 * count), count, memory.out.at(at),
                                 DType::kBF16);
                });
}

// SampleTokens overwrites its logits, so each call gets new ones, and the copy's time is taken off:
// they come from where the model's head would have left them, which is the cache in part.
void BenchSample(const Runner& runner, const RandomMemory& memory, uint32_t rows,
                 const SampleRow& how, const char* how_name) {
  const std::string name = "sample/" + std::to_string(rows) + "/" + how_name;
  if (!runner.Wanted(name)) return;
  const DeviceMemory samples(std::vector<SampleRow>(rows, how));
  const DeviceMemory edits(std::vector<LogitEdit>(1));
  const DeviceMemory tokens(rows * sizeof(int32_t));
  const DeviceMemory scratch(SampleScratchBytes(rows, kVocab));
  const size_t bytes = size_t{rows} * kVocab * sizeof(float);
  const size_t sets = Runner::SetsFor(bytes, memory.floats.bytes());
  const auto copy = [&](size_t i) {
    return cudaMemcpyAsync(memory.out.at(), memory.floats.at((i % sets) * bytes), bytes,
                           cudaMemcpyDeviceToDevice, runner.launch().stream);
  };
  const auto both = [&](size_t i) {
    if (const cudaError_t error = copy(i); error != cudaSuccess) return error;
    return SampleTokens(runner.launch(), memory.out.at<float>(), rows, kVocab,
                        samples.at<SampleRow>(), edits.at<LogitEdit>(), scratch.at(),
                        tokens.at<int32_t>());
  };
  const std::optional<double> copy_seconds = runner.Measure(name, sets, copy);
  const std::optional<double> seconds = runner.Measure(name, sets, both);
  if (!copy_seconds.has_value() || !seconds.has_value()) return;
  runner.Print(name, *seconds - *copy_seconds, {static_cast<double>(bytes), Unit::kBytes});
}

}  // namespace

Limits MeasureLimits(const Runner& runner, const RandomMemory& memory) {
  Limits limits;
  const double bytes = static_cast<double>(kGigabyte);
  const auto print = [&runner](const char* name, double seconds, const Work& work) {
    runner.Print(name, seconds, work);
    return work.amount / seconds;
  };
  const uint32_t n = 8192;
  // First, because it warms the GPU up.
  const double product = ProductSeconds(runner, memory, n, n, n, DType::kBF16);
  if (product > 0) {
    limits.product_flops = print("limit/product_8192", product, {2.0 * n * n * n, Unit::kFlops});
  }
  const auto copy = runner.Measure("limit/copy", 1, [&](size_t i) {
    return cudaMemcpyAsync(memory.out.at(), memory.weights.at((i % 8) * kGigabyte), kGigabyte,
                           cudaMemcpyDeviceToDevice, runner.launch().stream);
  });
  if (copy.has_value()) limits.copy_bytes = print("limit/copy", *copy, {2 * bytes, Unit::kBytes});
  const auto read = runner.Measure("limit/read", 1, [&](size_t i) {
    return ReadAll(runner.launch(), memory.weights.at((i % 8) * kGigabyte), kGigabyte,
                   memory.out.at<uint32_t>());
  });
  if (read.has_value()) limits.read_bytes = print("limit/read", *read, {bytes, Unit::kBytes});
  MeasureTransfers(runner, memory);
  return limits;
}

void BenchRowwise(const Runner& runner, const RandomMemory& memory, const Limits& limits) {
  for (const uint32_t rows : {1u, 64u, kRowsMany}) {
    BenchNorms(runner, memory, limits, rows);
    BenchRope(runner, memory, limits, rows);
    BenchSiluMul(runner, memory, limits, rows);
  }
}

void BenchSampling(const Runner& runner, const RandomMemory& memory) {
  memory.FillFloats(runner.launch());  // Sums were added up in them.
  const SampleRow greedy = {};
  const SampleRow any = {.temperature = 0.8f, .u = 0.4f};
  const SampleRow some = {.temperature = 0.8f, .top_k = 50, .top_p = 0.95f, .u = 0.4f};
  const SampleRow nucleus = {.temperature = 0.8f, .top_p = 0.95f, .u = 0.4f};
  for (const uint32_t rows : {1u, 64u}) {
    BenchSample(runner, memory, rows, greedy, "greedy");
    BenchSample(runner, memory, rows, any, "any");
    BenchSample(runner, memory, rows, some, "top_k_top_p");
    BenchSample(runner, memory, rows, nucleus, "top_p");
  }
}

// What a kernel of a recorded step costs at least.
void BenchGraphs(const Runner& runner) {
  runner.Report("graph/kernel", 300, {},
                [&](size_t) { return DoNothing(runner.WithoutOverlap()); });
  runner.Report("graph/kernel_overlapped", 300, {},
                [&](size_t) { return DoNothing(runner.launch()); });
}

}  // namespace baton::cuda

namespace {

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  baton::cuda::Runner::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--quick") {
      options.quick = true;
    } else if (flag.starts_with("--only=")) {
      options.only = Split(flag.substr(7));
    } else {
      std::fprintf(stderr, "usage: cuda_bench [--quick] [--only=BEGINNING[,BEGINNING...]]\n");
      return 2;
    }
  }
  const baton::cuda::Runner runner(std::move(options));
  const baton::cuda::RandomMemory memory(runner.launch());
  const baton::cuda::Limits limits = MeasureLimits(runner, memory);
  if (runner.WantedGroup("graph")) BenchGraphs(runner);
  BenchRowwise(runner, memory, limits);
  if (runner.WantedGroup("skinny") || runner.WantedGroup("cublas") ||
      runner.WantedGroup("dequantize")) {
    BenchLinear(runner, memory, limits);
  }
  if (runner.WantedGroup("decode")) BenchDecodeAttention(runner, memory, limits);
  if (runner.WantedGroup("prefill")) BenchPrefillAttention(runner, memory, limits);
  BenchSampling(runner, memory);
  return 0;
}
