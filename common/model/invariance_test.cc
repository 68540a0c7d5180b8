// Goal: a token's logits depend on nothing but the tokens before it, for every form of the weights,
// type of the cache and instruction set. Method: random models; sequences of random lengths run in
// random chunks, beside each other, over scattered blocks of random sizes, by 1 to 4 threads, each
// with a last part token by token; their logits are compared, bit by bit, with one pass of each
// sequence alone.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "common/kernels/testing/kernel_fixture.h"
#include "common/model/decoder.h"
#include "common/model/testing/tiny_model.h"

namespace baton {
namespace {

constexpr uint32_t kTokensMax = 300;  // Of a sequence: several tiles of attention.
constexpr uint32_t kSequences = 3;
constexpr uint32_t kBatchTokensMax = kSequences * kTokensMax;
constexpr uint32_t kSchedules = 3;

using Tokens = std::vector<TokenId>;

struct Case {
  WeightFormat weights;
  DType kv_dtype = DType::kF32;
};

// How one run is made.
struct Setting {
  CpuIsa isa = BestCpuIsa();
  uint32_t threads = 1;
  uint32_t block_tokens = 16;
};

// A model and `kSequences` sequences, with the logits of every token that has been run.
class Sequences {
 public:
  Sequences(const std::string& folder, const Case& tested, const Setting& setting,
            std::vector<Tokens> sequences)
      : device_(MakeHostDevice()), sequences_(std::move(sequences)) {
    const ModelConfig config = ModelConfig::Load(folder).value();
    auto context =
        KernelContext::Create({.threads = setting.threads, .cpu_isa = setting.isa}).value();
    auto weights = ModelWeights::Load(*device_, *context, config, folder,
                                      {.form = tested.weights.form,
                                       .activation_bytes = tested.weights.activation_bytes})
                       .value();
    model_ = Decoder::Create(*device_, config, std::move(weights), std::move(context),
                             kBatchTokensMax, "fingerprint")
                 .value();
    const KvLayout layout = {.layers = config.layers,
                             .kv_heads = config.kv_heads,
                             .head_dim = config.head_dim,
                             .block_tokens = setting.block_tokens,
                             .dtype = tested.kv_dtype};
    const uint32_t each = layout.BlocksFor(kTokensMax);
    cache_ = KvArena::Create(*device_, layout, kSequences * each).value();
    std::vector<BlockId> all;
    for (uint32_t block = 0; block < kSequences * each; ++block) all.push_back(BlockId{block});
    std::shuffle(all.begin(), all.end(), std::mt19937(7));
    for (uint32_t i = 0; i < kSequences; ++i) {
      blocks_.emplace_back(all.begin() + i * each, all.begin() + (i + 1) * each);
    }
    logits_.resize(kSequences);
    done_.resize(kSequences);
  }

  const std::vector<Floats>& logits() const { return logits_; }
  size_t Left(size_t sequence) const { return sequences_[sequence].size() - done_[sequence]; }
  bool Finished() const {
    for (size_t i = 0; i < kSequences; ++i) {
      if (Left(i) > 0) return false;
    }
    return true;
  }

  // Runs the next counts[i] tokens of each sequence i, all in one batch.
  void Step(const std::vector<size_t>& counts) {
    std::vector<BatchRow> rows;
    size_t tokens = 0;
    for (size_t i = 0; i < kSequences; ++i) {
      if (counts[i] == 0) continue;
      rows.push_back({.tokens = std::span(sequences_[i]).subspan(done_[i], counts[i]),
                      .start = static_cast<uint32_t>(done_[i]),
                      .blocks = blocks_[i],
                      .logit_count = static_cast<uint32_t>(counts[i])});
      tokens += counts[i];
    }
    const size_t vocab = model_->config().vocab_size;
    Floats out(tokens * vocab);
    const absl::Status status = model_->Forward(rows, *cache_, out, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    auto from = out.begin();
    for (size_t i = 0; i < kSequences; ++i) {
      const auto to = from + static_cast<ptrdiff_t>(counts[i] * vocab);
      logits_[i].insert(logits_[i].end(), from, to);
      done_[i] += counts[i];
      from = to;
    }
  }

 private:
  const std::unique_ptr<Device> device_;
  const std::vector<Tokens> sequences_;
  std::unique_ptr<Decoder> model_;
  std::unique_ptr<KvArena> cache_;
  std::vector<std::vector<BlockId>> blocks_;
  std::vector<Floats> logits_;
  std::vector<size_t> done_;
};

class InvarianceTest : public testing::TestWithParam<std::tuple<WeightFormat, DType>> {
 protected:
  InvarianceTest()
      : folder_(testing::TempDir() + std::to_string(getpid()) + "invariance_test"),
        case_{std::get<0>(GetParam()), std::get<1>(GetParam())} {
    std::filesystem::create_directories(folder_);
  }
  ~InvarianceTest() override { std::filesystem::remove_all(folder_); }

  // Sizes that fill neither panels nor groups of weights nor registers.
  void WriteModel(std::mt19937& random) {
    const uint32_t kv_heads = 1 + random() % 2;
    const TinyModelOptions options = {.layers = 2,
                                      .hidden = 8 * (5 + static_cast<uint32_t>(random() % 8)),
                                      .intermediate = 72,
                                      .heads = kv_heads * (1 + static_cast<uint32_t>(random() % 4)),
                                      .kv_heads = kv_heads,
                                      .head_dim = random() % 2 == 0 ? 8u : 20u,
                                      .seed = random(),
                                      .tied_embeddings = random() % 2 == 0,
                                      .tokenizer = false};
    ASSERT_TRUE(WriteTinyModel(folder_, options).ok());
  }

  std::vector<Tokens> RandomSequences(std::mt19937& random) {
    std::vector<Tokens> sequences(kSequences);
    for (Tokens& tokens : sequences) {
      tokens.resize(1 + random() % kTokensMax);
      for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 259);
    }
    return sequences;
  }

  // Each sequence alone, in one pass.
  std::vector<Floats> Reference(const std::vector<Tokens>& sequences) {
    Sequences run(folder_, case_, {}, sequences);
    for (size_t i = 0; i < kSequences; ++i) {
      std::vector<size_t> counts(kSequences);
      counts[i] = sequences[i].size();
      run.Step(counts);
    }
    return run.logits();
  }

  // Chunks of random sizes, then, for a random last part, one token at a time.
  std::vector<Floats> Scheduled(const std::vector<Tokens>& sequences, CpuIsa isa,
                                std::mt19937& random) {
    const uint32_t block_sizes[] = {1, 4, 16, 32};
    Sequences run(folder_, case_,
                  {.isa = isa,
                   .threads = 1 + static_cast<uint32_t>(random() % 4),
                   .block_tokens = block_sizes[random() % 4]},
                  sequences);
    const size_t chunk_max = 1 + random() % 200;
    std::vector<size_t> decoded(kSequences);
    for (size_t& count : decoded) count = random() % 12;
    while (!run.Finished()) {
      std::vector<size_t> counts(kSequences);
      for (size_t i = 0; i < kSequences; ++i) {
        const size_t left = run.Left(i);
        if (left > decoded[i]) {
          counts[i] = std::min(left - decoded[i], random() % (chunk_max + 1));
        } else {
          counts[i] = std::min<size_t>(left, random() % 4 > 0 ? 1 : 0);
        }
      }
      if (std::any_of(counts.begin(), counts.end(), [](size_t count) { return count > 0; })) {
        run.Step(counts);
      }
    }
    return run.logits();
  }

  const std::string folder_;
  const Case case_;
};

TEST_P(InvarianceTest, EveryScheduleGivesTheBitsOfOnePass) {
  for (uint32_t seed = 0; seed < kSchedules; ++seed) {
    std::mt19937 random(seed);
    ASSERT_NO_FATAL_FAILURE(WriteModel(random));
    const std::vector<Tokens> sequences = RandomSequences(random);
    const std::vector<Floats> reference = Reference(sequences);
    for (CpuIsa isa : Isas()) {
      const std::vector<Floats> scheduled = Scheduled(sequences, isa, random);
      for (size_t i = 0; i < kSequences; ++i) {
        EXPECT_TRUE(SameBits(scheduled[i], reference[i]))
            << CpuIsaName(isa) << " seed " << seed << " sequence " << i;
      }
    }
  }
}

std::string NameOf(const testing::TestParamInfo<std::tuple<WeightFormat, DType>>& tested) {
  return std::get<0>(tested.param).name() + "_kv_" + DTypeName(std::get<1>(tested.param));
}

INSTANTIATE_TEST_SUITE_P(
    Forms, InvarianceTest,
    testing::Combine(testing::Values(WeightFormat{.form = WeightForm::kF32},
                                     WeightFormat{.form = WeightForm::kBF16},
                                     WeightFormat{.form = WeightForm::kBF16, .activation_bytes = 2},
                                     WeightFormat{.form = WeightForm::kF16},
                                     WeightFormat{.form = WeightForm::kFp8},
                                     WeightFormat{.form = WeightForm::kInt8, .activation_bytes = 1},
                                     WeightFormat{.form = WeightForm::kInt8, .activation_bytes = 2},
                                     WeightFormat{.form = WeightForm::kInt4, .activation_bytes = 1},
                                     WeightFormat{.form = WeightForm::kInt4,
                                                  .activation_bytes = 2}),
                     testing::Values(DType::kF32, DType::kBF16, DType::kI8)),
    NameOf);
// Forms of weights and of the cache do not meet: one form with each.
INSTANTIATE_TEST_SUITE_P(Caches, InvarianceTest,
                         testing::Combine(testing::Values(WeightFormat{.form = WeightForm::kF32}),
                                          testing::Values(DType::kF16, DType::kFp8)),
                         NameOf);

}  // namespace
}  // namespace baton
