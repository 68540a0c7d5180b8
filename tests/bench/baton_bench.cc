// baton_bench: how fast a model runs on this machine, as a share of what the machine can do.
//
// The tests are named as users of other engines know them: pp512 is a prompt of 512 tokens, tg128
// is 128 tokens generated one by one; tg128@4096 starts behind 4096 tokens, tg128x16 runs 16
// sequences.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/clock.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/kernels/packed_weight.h"
#include "common/model/model.h"
#include "tests/bench/machine_limits.h"
#include "tests/bench/random_model.h"

ABSL_FLAG(std::string, model, "", "A model folder; empty: random weights of --shape.");
ABSL_FLAG(std::string, shape, "135m", "Of the random weights: 135m, 0.5b, 1b or moe.");
ABSL_FLAG(std::string, weights, "bf16", "f32, bf16, f16, int8, fp8 or int4.");
ABSL_FLAG(uint32_t, activation_bytes, 0,
          "Bytes per activation, as --activation_bits / 8 of the workers.");
ABSL_FLAG(std::string, kv_dtype, "bf16", "f32, bf16, f16, int8 or fp8.");
ABSL_FLAG(std::string, threads, "1", "Comma-separated: one table for each.");
ABSL_FLAG(std::string, tests, "pp512,tg64,tg64@2048,tg32x4,tg32x16",
          "Comma-separated: ppN or tgN, then @DEPTH, xBATCH if wanted.");
ABSL_FLAG(std::string, device, "cpu", "Where to compute: cpu, cuda or cuda:INDEX.");
ABSL_FLAG(uint32_t, tp, 1,
          "Devices that compute together, from --device on; they share --threads.");
ABSL_FLAG(uint32_t, chunk_tokens, 512, "Most prompt tokens that are computed in one step.");
ABSL_FLAG(double, limit_gb, 0,
          "GB/s that one GPU can read, as cuda_bench measures; on a CPU it is measured here.");
ABSL_FLAG(double, limit_tflop, 0, "TFLOP/s that one GPU can compute, likewise.");
ABSL_FLAG(bool, steps_ahead, true,
          "Where the device can: start each decode step before the one before it has ended, as "
          "workers do.");
ABSL_FLAG(uint32_t, repeat, 3, "Runs of each test; the median is shown.");

namespace baton {
namespace {

constexpr uint32_t kBlockTokens = 16;
// A byte of which several make about 0.05 in float32 as in bfloat16.
constexpr int kSmallNumber = 0x3d;

uint32_t ChunkTokens() { return std::max(1u, absl::GetFlag(FLAGS_chunk_tokens)); }

struct BenchTest {
  std::string name;
  bool prompt = false;
  uint32_t tokens = 0;
  uint32_t depth = 0;
  uint32_t batch = 1;
};

absl::StatusOr<BenchTest> ParseTest(const std::string& text) {
  BenchTest test{.name = text};
  std::string rest = text;
  const auto cut = [&rest](char mark, uint32_t* value) {
    const size_t at = rest.find(mark);
    if (at == std::string::npos) return true;
    const bool good = absl::SimpleAtoi(rest.substr(at + 1), value) && *value > 0;
    rest.resize(at);
    return good;
  };
  if (rest.size() > 2 && cut('x', &test.batch) && cut('@', &test.depth)) {
    test.prompt = rest.rfind("pp", 0) == 0;
    const bool known = test.prompt || rest.rfind("tg", 0) == 0;
    if (known && absl::SimpleAtoi(rest.substr(2), &test.tokens) && test.tokens > 0) return test;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--tests: '", text, "' is none; give pp512, tg128, tg128@4096, tg32x16"));
}

// What one token costs, from the model's shape.
struct Costs {
  double weight_bytes = 0;  // Read once a step, without experts.
  double expert_bytes = 0;  // Of all layers' first experts, say.
  double experts = 0;       // Of a layer.
  double experts_per_token = 0;
  double operations = 0;            // Of the matrix products of one token, without logits.
  double logit_operations = 0;      // Of one token that wants logits.
  double kv_bytes = 0;              // Of one token in the cache.
  double attention_operations = 0;  // Of one token for each token that it sees.
};

double BytesPerWeight(WeightForm form) {
  switch (form) {
    case WeightForm::kF32:
      return 4;
    case WeightForm::kBF16:
    case WeightForm::kF16:
      return 2;
    case WeightForm::kInt8:
    case WeightForm::kFp8:
      return 1;
    case WeightForm::kInt4:
      return 0.5 + 2.0 / 32;
  }
  return 0;
}

Costs CostsOf(const ModelConfig& config, WeightForm weights, DType kv) {
  const WeightForm head_form = weights == WeightForm::kInt4 ? WeightForm::kInt8 : weights;
  const double hidden = config.hidden_size;
  const double q = static_cast<double>(config.heads) * config.head_dim;
  const double kv_size = static_cast<double>(config.kv_heads) * config.head_dim;
  double sparse_layers = 0;
  for (uint32_t i = 0; i < config.layers; ++i) sparse_layers += config.HasExperts(i) ? 1 : 0;
  // Of all layers; routers are too small to count.
  const double dense = config.layers * hidden * (2 * q + 2 * kv_size) +
                       (config.layers - sparse_layers) * 3 * hidden * config.intermediate_size +
                       sparse_layers * 3 * hidden * config.experts.shared_intermediate_size;
  const double expert = sparse_layers * 3 * hidden * config.experts.intermediate_size;
  const double head = hidden * config.vocab_size;
  return {.weight_bytes = dense * BytesPerWeight(weights) + head * BytesPerWeight(head_form),
          .expert_bytes = expert * BytesPerWeight(weights),
          .experts = static_cast<double>(config.experts.count),
          .experts_per_token = static_cast<double>(config.experts.per_token),
          .operations = 2 * (dense + config.experts.per_token * expert),
          .logit_operations = 2 * head,
          .kv_bytes = 2.0 * config.kv_heads * config.layers *
                      static_cast<double>(KvRowBytes(kv, config.head_dim)),
          .attention_operations = 4 * q * config.layers};
}

class Bench {
 public:
  static absl::StatusOr<Bench> Create(std::span<Device* const> devices,
                                      const std::string& directory, uint32_t threads,
                                      uint32_t tokens_max, uint32_t batch_max) {
    Bench bench;
    BATON_ASSIGN_OR_RETURN(
        bench.model_,
        Model::Load(devices, {.directory = directory,
                              .weights = absl::GetFlag(FLAGS_weights),
                              .activation_bytes = absl::GetFlag(FLAGS_activation_bytes),
                              .threads = threads,
                              .batch_tokens_max = std::max(batch_max, ChunkTokens())}));
    const ModelConfig& config = bench.model_->config();
    BATON_ASSIGN_OR_RETURN(const DType kv, ParseDType(absl::GetFlag(FLAGS_kv_dtype)));
    const uint32_t blocks = (tokens_max + kBlockTokens - 1) / kBlockTokens;
    BATON_ASSIGN_OR_RETURN(bench.arena_, KvArena::Create(devices,
                                                         {.layers = config.layers,
                                                          .kv_heads = config.kv_heads,
                                                          .head_dim = config.head_dim,
                                                          .block_tokens = kBlockTokens,
                                                          .dtype = kv},
                                                         blocks * batch_max));
    // On a CPU memory that nobody has written is one page of zeros, read from the cache.
    if (devices[0]->kind() == DeviceKind::kCpu) FillWithNumbers(*bench.arena_);
    BATON_ASSIGN_OR_RETURN(const WeightForm weights, ParseWeightForm(absl::GetFlag(FLAGS_weights)));
    bench.costs_ = CostsOf(config, weights, kv);
    bench.quantized_ = weights == WeightForm::kInt8 || weights == WeightForm::kInt4;
    for (uint32_t i = 0; i < batch_max; ++i) {
      auto& own = bench.blocks_.emplace_back(blocks);
      for (uint32_t block = 0; block < blocks; ++block) own[block] = BlockId{i * blocks + block};
    }
    return bench;
  }

  // Seconds that the test took. The cache behind `depth` holds some numbers: which, does not matter
  // for the time.
  absl::StatusOr<double> Run(const BenchTest& test) {
    const Instant start = Now();
    if (test.prompt) {
      for (uint32_t sequence = 0; sequence < test.batch; ++sequence) {
        for (uint32_t done = 0; done < test.tokens; done += ChunkTokens()) {
          const uint32_t count = std::min(ChunkTokens(), test.tokens - done);
          BATON_RETURN_IF_ERROR(
              Step(sequence, 1, test.depth + done, count, done + count == test.tokens));
        }
      }
    } else if (absl::GetFlag(FLAGS_steps_ahead) && model_->CanStart(test.batch)) {
      BATON_RETURN_IF_ERROR(DecodeAhead(test));
    } else {
      for (uint32_t done = 0; done < test.tokens; ++done) {
        BATON_RETURN_IF_ERROR(Step(0, test.batch, test.depth + done, 1, true));
      }
    }
    return std::chrono::duration<double>(Now() - start).count();
  }

  // Whether most operations are products of bytes.
  bool quantized() const { return quantized_; }
  double Operations(const BenchTest& test) const {
    const double tokens = static_cast<double>(test.tokens) * test.batch;
    const double seen = test.depth + (test.tokens + 1) / 2.0;
    return tokens * (costs_.operations + seen * costs_.attention_operations) +
           (test.prompt ? test.batch : tokens) * costs_.logit_operations;
  }
  // Experts of a layer that one step reads, if each is as likely as any other.
  double ExpertsRead(uint32_t batch) const {
    if (costs_.experts == 0) return 0;
    return costs_.experts * (1 - std::pow(1 - costs_.experts_per_token / costs_.experts, batch));
  }
  // Of generating.
  double Bytes(const BenchTest& test) const {
    const double seen = test.depth + (test.tokens + 1) / 2.0;
    return test.tokens * (costs_.weight_bytes + ExpertsRead(test.batch) * costs_.expert_bytes +
                          test.batch * seen * costs_.kv_bytes);
  }

 private:
  static void FillWithNumbers(KvArena& arena) {
    for (uint32_t shard = 0; shard < arena.shard_count(); ++shard) {
      for (uint32_t block = 0; block < arena.block_count(); ++block) {
        std::memset(arena.BlockData(BlockId{block}, shard), kSmallNumber,
                    arena.shard_layout().block_bytes());
      }
    }
  }

  // Of some text, whatever it means.
  TokenId TokenAt(uint32_t position, size_t row) const {
    return static_cast<TokenId>((position + row * 31) * 7919 % model_->config().vocab_size);
  }

  // As a worker's engine does: each step is started before the one before it has ended.
  absl::Status DecodeAhead(const BenchTest& test) {
    const std::vector<SampleRow> samples(test.batch);
    std::vector<TokenId> chosen(test.batch);
    for (uint32_t done = 0; done < test.tokens; ++done) {
      std::vector<DecodeRow> rows;
      for (uint32_t i = 0; i < test.batch; ++i) {
        const uint32_t position = test.depth + done;
        // Not the tokens that were chosen: of a mixture few experts might be among them.
        rows.push_back({.token = TokenAt(position, i), .start = position, .blocks = blocks_[i]});
      }
      BATON_RETURN_IF_ERROR(model_->StartStep(rows, *arena_, samples, {}));
      if (done > 0) BATON_RETURN_IF_ERROR(model_->FinishStep(chosen));
    }
    return model_->FinishStep(chosen);
  }

  absl::Status Step(uint32_t first, uint32_t batch, uint32_t position, uint32_t count,
                    bool logits) {
    std::vector<TokenId> tokens(size_t{batch} * count);
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = TokenAt(position, i);
    }
    std::vector<BatchRow> rows;
    for (uint32_t i = 0; i < batch; ++i) {
      rows.push_back({.tokens = std::span(tokens).subspan(size_t{i} * count, count),
                      .start = position,
                      .blocks = blocks_[first + i],
                      .logit_count = logits ? 1u : 0u});
    }
    if (model_->samples_tokens()) {
      const std::vector<SampleRow> samples(logits ? batch : 0);
      std::vector<TokenId> chosen(samples.size());
      return model_->ForwardAndSample(rows, *arena_,
                                      {.samples = samples, .edits = {}, .tokens = chosen}, nullptr);
    }
    logits_.resize(logits ? size_t{batch} * model_->config().vocab_size : 0);
    return model_->Forward(rows, *arena_, logits_, nullptr);
  }

  std::unique_ptr<Model> model_;
  std::unique_ptr<KvArena> arena_;
  std::vector<std::vector<BlockId>> blocks_;
  std::vector<float> logits_;
  Costs costs_;
  bool quantized_ = false;
};

MachineLimits LimitsOf(std::span<Device* const> devices, uint32_t threads) {
  if (devices[0]->kind() == DeviceKind::kCpu) return MeasureMachine(threads);
  const auto count = static_cast<double>(devices.size());
  return {.read_bytes_per_second = count * absl::GetFlag(FLAGS_limit_gb) * 1e9,
          .float_operations_per_second = count * absl::GetFlag(FLAGS_limit_tflop) * 1e12};
}

absl::Status RunTable(std::span<Device* const> devices, const std::string& directory,
                      const std::vector<BenchTest>& tests, uint32_t threads) {
  uint32_t tokens_max = 1;
  uint32_t batch_max = 1;
  for (const BenchTest& test : tests) {
    tokens_max = std::max(tokens_max, test.depth + test.tokens);
    batch_max = std::max(batch_max, test.batch);
  }
  BATON_ASSIGN_OR_RETURN(Bench bench,
                         Bench::Create(devices, directory, threads, tokens_max, batch_max));
  const MachineLimits limits = LimitsOf(devices, threads);
  std::printf(
      "%zu x %s, threads %u: reads %.1f GB/s, multiply-add of float32 %.0f Gop/s, of bytes %.0f "
      "Gop/s\n",
      devices.size(), devices[0]->name().c_str(), threads, limits.read_bytes_per_second / 1e9,
      limits.float_operations_per_second / 1e9, limits.byte_operations_per_second / 1e9);
  const double operations_limit = bench.quantized() && limits.byte_operations_per_second > 0
                                      ? limits.byte_operations_per_second
                                      : limits.float_operations_per_second;
  std::printf("%-14s %12s %10s %9s %10s %9s\n", "test", "tokens/s", "GB/s", "of limit", "Gop/s",
              "of limit");
  for (const BenchTest& test : tests) {
    std::vector<double> seconds;
    for (uint32_t i = 0; i < std::max(1u, absl::GetFlag(FLAGS_repeat)); ++i) {
      BATON_ASSIGN_OR_RETURN(seconds.emplace_back(), bench.Run(test));
    }
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<long>(seconds.size() / 2),
                     seconds.end());
    const double median = seconds[seconds.size() / 2];
    const double tokens = static_cast<double>(test.tokens) * test.batch / median;
    const double operations = bench.Operations(test) / median;
    std::printf("%-14s %12.1f ", test.name.c_str(), tokens);
    if (test.prompt) {
      std::printf("%10s %9s ", "", "");
    } else {
      const double bytes = bench.Bytes(test) / median;
      std::printf("%10.1f %8.0f%% ", bytes / 1e9, 100 * bytes / limits.read_bytes_per_second);
    }
    std::printf("%10.0f %8.0f%%\n", operations / 1e9, 100 * operations / operations_limit);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

absl::Status RunAll() {
  std::vector<BenchTest> tests;
  for (const absl::string_view text : absl::StrSplit(absl::GetFlag(FLAGS_tests), ',')) {
    BATON_ASSIGN_OR_RETURN(tests.emplace_back(), ParseTest(std::string(text)));
  }
  std::string directory = absl::GetFlag(FLAGS_model);
  std::unique_ptr<RandomModel> random;
  if (directory.empty()) {
    BATON_ASSIGN_OR_RETURN(const WeightForm form, ParseWeightForm(absl::GetFlag(FLAGS_weights)));
    BATON_ASSIGN_OR_RETURN(
        random, RandomModel::Create({.shape = absl::GetFlag(FLAGS_shape), .form = form}));
    directory = random->path();
  }
  if (absl::GetFlag(FLAGS_tp) == 0) return absl::InvalidArgumentError("--tp must not be 0");
  BATON_ASSIGN_OR_RETURN(const std::vector<std::unique_ptr<Device>> owned,
                         OpenDevices(absl::GetFlag(FLAGS_device), absl::GetFlag(FLAGS_tp)));
  std::vector<Device*> devices;
  for (const std::unique_ptr<Device>& device : owned) devices.push_back(device.get());
  for (const absl::string_view text : absl::StrSplit(absl::GetFlag(FLAGS_threads), ',')) {
    uint32_t threads = 0;
    if (!absl::SimpleAtoi(text, &threads) || threads == 0) {
      return absl::InvalidArgumentError(absl::StrCat("--threads: '", text, "' is no number"));
    }
    if (devices[0]->kind() == DeviceKind::kCpu && threads % devices.size() != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--threads=", threads, " is not a multiple of --tp=", devices.size()));
    }
    BATON_RETURN_IF_ERROR(RunTable(devices, directory, tests, threads));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_bench",
       .summary = "Measures how fast a model runs here, as a share of what the machine can do.",
       .usage =
           "Usage: baton_bench [--shape 135m | --model DIR] [--threads 1,2] [--tests pp512,tg64]",
       .version = baton::Version()});
  const absl::Status status = baton::RunAll();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
