// What a step of the decode engine costs beside the model: planning, blocks, sampling plans,
// events. A GPU that waits for the host idles meanwhile, so it is to be compared with the time of a
// step.
//
// The model is one that takes no time and samples its tokens itself, as a GPU does; or, where steps
// are started ahead, one whose device takes a given time for each and does one after the other.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/engine/testing/engine_fixture.h"
#include "decode_worker/decode_engine.h"

namespace baton {
namespace {

constexpr uint32_t kBlockTokens = 16;
constexpr uint32_t kContextTokens = 1u << 20;
constexpr uint32_t kVocab = 128256;
// That are sampled: with many more, penalties would reach the executor's limit.
constexpr TokenId kDifferentTokens = 512;

class IdleModel final : public Model {
 public:
  // Of the device, for a step; and whether steps are started ahead.
  explicit IdleModel(Duration step = {}, bool starts_steps = false)
      : step_(step), starts_steps_(starts_steps) {
    config_.layers = 1;
    config_.kv_heads = 1;
    config_.head_dim = 1;
    config_.vocab_size = kVocab;
    config_.context_tokens = kContextTokens;
    config_.layer_attention.resize(1);
  }

  const ModelConfig& config() const override { return config_; }
  const std::string& fingerprint() const override { return name_; }
  const std::string& numerics() const override { return name_; }
  uint64_t parameter_count() const override { return 0; }
  absl::Status Forward(std::span<const BatchRow> /*rows*/, KvArena& /*cache*/,
                       std::span<float> /*logits*/, const LayerDone& /*layer_done*/) override {
    return absl::OkStatus();
  }
  bool samples_tokens() const override { return true; }
  absl::Status ForwardAndSample(std::span<const BatchRow> /*rows*/, KvArena& /*cache*/,
                                const TokenChoice& choice,
                                const LayerDone& /*layer_done*/) override {
    Choose(choice.tokens);
    WaitUntil(Now() + step_);
    return absl::OkStatus();
  }
  bool CanStart(size_t /*rows*/) const override { return starts_steps_; }
  absl::Status StartStep(std::span<const DecodeRow> /*rows*/, KvArena& /*cache*/,
                         std::span<const SampleRow> /*samples*/,
                         std::span<const LogitEdit> /*edits*/) override {
    idle_from_ = std::max(idle_from_, Now()) + step_;
    ends_.push_back(idle_from_);
    return absl::OkStatus();
  }
  absl::Status FinishStep(std::span<TokenId> tokens) override {
    Choose(tokens);
    WaitUntil(ends_.front());
    ends_.pop_front();
    return absl::OkStatus();
  }

 private:
  void Choose(std::span<TokenId> tokens) {
    for (TokenId& token : tokens) token = next_++ % kDifferentTokens;
  }
  static void WaitUntil(Instant end) {
    while (Now() < end) {
    }
  }

  const Duration step_;
  const bool starts_steps_;
  Instant idle_from_{};
  std::deque<Instant> ends_;  // Of the steps that were started.
  ModelConfig config_;
  std::string name_ = "idle";
  TokenId next_ = 0;
};

class DroppedEvents final : public EventPort {
 public:
  void Send(Incarnation /*router*/, v1::Event event) override { benchmark::DoNotOptimize(event); }
};

// Sequences that run without end, each behind `depth` tokens of its own.
class RunningEngine {
 public:
  RunningEngine(uint32_t sequences, uint32_t depth, float repetition_penalty, Duration step = {},
                bool starts_steps = false)
      : model_(step, starts_steps),
        blocks_(sequences * ((depth + kRoomTokens) / kBlockTokens + 1)),
        arena_(KvArena::Create(
                   *device_,
                   {.layers = 1, .kv_heads = 1, .head_dim = 1, .block_tokens = kBlockTokens},
                   blocks_)
                   .value()),
        pool_(blocks_),
        executor_(&model_, arena_.get()),
        engine_({.incarnation = Incarnation{1}, .chunk_tokens = 8192, .sequences_max = sequences},
                &executor_, &pool_, &events_, &transfers_, &Now, [] { return uint64_t{1}; }) {
    for (uint32_t i = 0; i < sequences; ++i) Admit(i, depth, repetition_penalty);
    // Until all prompts have been computed.
    while (engine_.Load().sequences_waiting() > 0) Step();
  }

  void Step() { BATON_CHECK(engine_.Step(Now())); }

  // How many steps fit before blocks run out.
  static constexpr uint32_t kRoomTokens = 4096;

 private:
  void Admit(uint32_t number, uint32_t depth, float repetition_penalty) {
    std::vector<TokenId> prompt(depth);
    for (uint32_t i = 0; i < depth; ++i) {
      prompt[i] = static_cast<TokenId>((i * 7919 + number * 104729) % kVocab);
    }
    v1::Command command;
    *command.mutable_admit()->mutable_work() = GreedyWork(number + 1, prompt, kRoomTokens);
    command.mutable_admit()->mutable_work()->mutable_sampling()->set_repetition_penalty(
        repetition_penalty);
    command.mutable_admit()->set_local_prefill(true);
    engine_.OnCommand(Incarnation{7}, command, Now());
  }

  IdleModel model_;
  const uint32_t blocks_;
  std::unique_ptr<Device> device_ = MakeHostDevice();
  std::unique_ptr<KvArena> arena_;
  BlockPool pool_;
  Executor executor_;
  DroppedEvents events_;
  RecordedTransfers transfers_;
  DecodeEngine engine_;
};

// Arguments: sequences, tokens behind each.
void BenchStep(benchmark::State& state, float repetition_penalty) {
  const auto sequences = static_cast<uint32_t>(state.range(0));
  const auto depth = static_cast<uint32_t>(state.range(1));
  auto engine = std::make_unique<RunningEngine>(sequences, depth, repetition_penalty);
  uint32_t left = RunningEngine::kRoomTokens / 2;
  for (auto _ : state) {
    if (left-- == 0) {
      state.PauseTiming();
      engine = std::make_unique<RunningEngine>(sequences, depth, repetition_penalty);
      left = RunningEngine::kRoomTokens / 2;
      state.ResumeTiming();
    }
    engine->Step();
  }
  state.counters["per_sequence"] = benchmark::Counter(
      static_cast<double>(sequences),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

BENCHMARK_CAPTURE(BenchStep, greedy, 1.0f)
    ->ArgsProduct({{1, 16, 64, 256}, {1024, 8192}})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BenchStep, penalty, 1.1f)
    ->ArgsProduct({{1, 16, 64}, {1024, 3000}})
    ->Unit(benchmark::kMicrosecond);

// How long a device that takes `step` for a step idles between two of them.
void BenchIdle(benchmark::State& state, Duration step, bool starts_steps) {
  const auto sequences = static_cast<uint32_t>(state.range(0));
  RunningEngine engine(sequences, 1024, 1.0f, step, starts_steps);
  uint64_t steps = 0;
  const Instant begin = Now();
  for (auto _ : state) {
    engine.Step();
    ++steps;
  }
  const double each = ToMilliseconds(Now() - begin) / static_cast<double>(steps);
  state.counters["idle_us"] = 1000.0 * (each - ToMilliseconds(step));
}

constexpr Duration kStep = std::chrono::milliseconds(2);
BENCHMARK_CAPTURE(BenchIdle, waits, kStep, false)
    ->ArgsProduct({{1, 16, 64, 256}})
    ->Iterations(1000)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BenchIdle, ahead, kStep, true)
    ->ArgsProduct({{1, 16, 64, 256}})
    ->Iterations(1000)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace baton

BENCHMARK_MAIN();
