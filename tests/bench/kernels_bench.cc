// The kernels one by one, on shapes of real models. Counters: operations and bytes per second.
//
//   kernels_bench --benchmark_filter='Linear.*int8'
//
// Linear's arguments are the rows m and the threads; inputs and outputs are 2048, and so many
// matrices take turns that no cache holds them. Attention's are the tokens in the cache and
// threads.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "common/kernels/kernels.h"
#include "common/kernels/testing/kernel_fixture.h"
#include "common/sampling/sampler.h"

namespace baton {
namespace {

void PerSecond(benchmark::State& state, const char* name, double once) {
  state.counters[name] = benchmark::Counter(once * static_cast<double>(state.iterations()),
                                            benchmark::Counter::kIsRate);
}

void BenchLinear(benchmark::State& state, const WeightFormat& format) {
  constexpr size_t kSize = 2048;
  constexpr size_t kBytesMin = size_t{128} << 20;
  const auto rows = static_cast<size_t>(state.range(0));
  const auto context = MakeContext(static_cast<uint32_t>(state.range(1)));
  const auto device = MakeHostDevice();
  Floats matrix = Random(kSize * kSize, 1);
  std::vector<PackedWeight> weights;
  do {
    weights.push_back(PackWeight(*context, *device, View(matrix, {kSize, kSize}), format).value());
  } while (weights.size() * weights.back().bytes() < kBytesMin);
  Floats x = Random(rows * kSize, 1);
  Floats out(rows * kSize);
  size_t turn = 0;
  for ([[maybe_unused]] auto step : state) {
    const LinearOutput output = {
        .weight = &weights[turn++ % weights.size()], .bias = {}, .out = View(out, {rows, kSize})};
    Linear(*context, View(x, {rows, kSize}), {&output, 1});
  }
  PerSecond(state, "operations", 2.0 * static_cast<double>(rows) * kSize * kSize);
  PerSecond(state, "weight_bytes", static_cast<double>(weights[0].bytes()));
}

// 32 heads over 8 KV heads of 64 numbers, as models of a billion parameters have.
void BenchAttention(benchmark::State& state, DType dtype, uint32_t count) {
  constexpr uint32_t kHeads = 32;
  constexpr uint32_t kKvHeads = 8;
  constexpr uint32_t kHeadDim = 64;
  constexpr uint32_t kBlockTokens = 16;
  const auto depth = static_cast<uint32_t>(state.range(0));
  const auto context = MakeContext(static_cast<uint32_t>(state.range(1)));
  const uint32_t blocks = (depth + kBlockTokens - 1) / kBlockTokens;
  std::vector<BlockId> table;
  for (uint32_t i = 0; i < blocks; ++i) table.push_back(BlockId{i});
  const size_t row_bytes = KvRowBytes(dtype, kHeadDim);
  const size_t block_bytes = size_t{2} * kKvHeads * kBlockTokens * row_bytes;
  const auto device = MakeHostDevice();
  DeviceMemory memory = device->Allocate(blocks * block_bytes).value();
  const KvPages pages = {.data = memory.data(),
                         .block_bytes = block_bytes,
                         .dtype = dtype,
                         .kv_heads = kKvHeads,
                         .head_dim = kHeadDim,
                         .block_tokens = kBlockTokens};
  const SequenceRows all = {.row = 0, .count = depth, .position = 0, .blocks = table};
  Floats kv = Random(size_t{depth} * kKvHeads * kHeadDim, 1);
  const TensorView kv_view = View(kv, {depth, kKvHeads, kHeadDim});
  WriteKv(*context, kv_view, kv_view, std::span(&all, 1), pages);

  const SequenceRows last = {.row = 0, .count = count, .position = depth - count, .blocks = table};
  Floats q = Random(size_t{count} * kHeads * kHeadDim, 1);
  Floats out(q.size());
  for ([[maybe_unused]] auto step : state) {
    Attention(*context, View(q, {count, kHeads, kHeadDim}), pages, std::span(&last, 1),
              {.scale = 0.125f}, View(out, {count, kHeads, kHeadDim}));
  }
  const double seen = depth - (count - 1) / 2.0;  // By a query, in the mean.
  PerSecond(state, "operations", 4.0 * count * kHeads * kHeadDim * seen);
  PerSecond(state, "kv_bytes", 2.0 * kKvHeads * static_cast<double>(row_bytes) * depth);
}

// One token out of a vocabulary of 128k entries.
void BenchSample(benchmark::State& state, const SamplingParams& params) {
  const Floats logits = Random(128'256, 1);
  Floats scratch;
  const std::vector<TokenId> tokens(100, 7);
  for ([[maybe_unused]] auto step : state) {
    scratch = logits;
    benchmark::DoNotOptimize(Sample(scratch, tokens, 50, params, {}).id);
  }
}

void RegisterLinear() {
  const WeightFormat formats[] = {{.form = WeightForm::kF32},
                                  {.form = WeightForm::kBF16},
                                  {.form = WeightForm::kBF16, .activation_bytes = 2},
                                  {.form = WeightForm::kFp8},
                                  {.form = WeightForm::kInt8, .activation_bytes = 2},
                                  {.form = WeightForm::kInt8, .activation_bytes = 1},
                                  {.form = WeightForm::kInt4, .activation_bytes = 2},
                                  {.form = WeightForm::kInt4, .activation_bytes = 1}};
  for (const WeightFormat& format : formats) {
    benchmark::RegisterBenchmark(("Linear/" + format.name()).c_str(), BenchLinear, format)
        ->ArgsProduct({{1, 4, 16, 512}, {1, 2}})
        ->UseRealTime();
  }
}

void RegisterAttention() {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kFp8}) {
    const std::string name = DTypeName(dtype);
    benchmark::RegisterBenchmark(("AttentionDecode/" + name).c_str(), BenchAttention, dtype, 1)
        ->ArgsProduct({{512, 4096}, {1, 2}})
        ->UseRealTime();
    benchmark::RegisterBenchmark(("AttentionPrefill/" + name).c_str(), BenchAttention, dtype, 512)
        ->ArgsProduct({{512, 4096}, {1, 2}})
        ->UseRealTime();
  }
}

void RegisterSample() {
  const auto add = [](const char* name, const SamplingParams& params) {
    benchmark::RegisterBenchmark(name, BenchSample, params)->Unit(benchmark::kMicrosecond);
  };
  add("Sample/greedy", {.temperature = 0.0f});
  add("Sample/all", {});
  add("Sample/top_k", {.top_k = 40});
  add("Sample/top_p", {.top_p = 0.9f});
  add("Sample/min_p", {.min_p = 0.05f});
  add("Sample/logprobs", {.temperature = 0.0f, .logprobs = 5});
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::RegisterLinear();
  baton::RegisterAttention();
  baton::RegisterSample();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
