// Goal: a device has done a step of every size that will come, and nothing that it cannot do.
// Method: a model that only writes down what it is asked for.
#include "common/model/warm_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "common/device/device.h"

namespace baton {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kBlocks = 4;
constexpr uint32_t kBlockTokens = 8;

// Steps are filled up to 1, 2, 4, and so on.
class NotingModel final : public Model {
 public:
  explicit NotingModel(uint32_t context_tokens) { config_.context_tokens = context_tokens; }

  const ModelConfig& config() const override { return config_; }
  const std::string& fingerprint() const override { return name_; }
  const std::string& numerics() const override { return name_; }
  uint64_t parameter_count() const override { return 0; }
  absl::Status Forward(std::span<const BatchRow> /*rows*/, KvArena& /*cache*/,
                       std::span<float> /*logits*/, const LayerDone& /*layer_done*/) override {
    return absl::InternalError("not what the engine would call");
  }
  bool samples_tokens() const override { return samples_tokens_; }
  uint32_t PaddedRows(uint32_t rows) const override {
    uint32_t padded = 1;
    while (padded < rows) padded *= 2;
    return padded;
  }
  absl::Status ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                const TokenChoice& choice,
                                const LayerDone& /*layer_done*/) override {
    EXPECT_EQ(choice.samples.size(), rows.size());
    EXPECT_EQ(choice.tokens.size(), rows.size());
    for (const BatchRow& row : rows) {
      EXPECT_EQ(row.logit_count, 1u);
      EXPECT_EQ(row.blocks.size(),
                cache.layout().BlocksFor(static_cast<uint32_t>(row.tokens.size())));
      EXPECT_TRUE(std::all_of(row.blocks.begin(), row.blocks.end(), [&cache](BlockId block) {
        return Raw(block) < cache.block_count();
      }));
    }
    (rows.size() == 1 && rows[0].tokens.size() > 1 ? chunks : decode_steps)
        .push_back(rows.size() == 1 ? static_cast<uint32_t>(rows[0].tokens.size())
                                    : static_cast<uint32_t>(rows.size()));
    return result;
  }

  void SampleNoTokens() { samples_tokens_ = false; }

  std::vector<uint32_t> chunks;        // Their tokens.
  std::vector<uint32_t> decode_steps;  // Their sequences.
  absl::Status result;

 private:
  ModelConfig config_;
  const std::string name_ = "noting";
  bool samples_tokens_ = true;
};

class WarmUpTest : public testing::Test {
 protected:
  const std::unique_ptr<Device> device_ = OpenDevice("cpu").value();
  Device* const devices_[1] = {device_.get()};
  const std::unique_ptr<KvArena> cache_ = KvArena::Create(devices_,
                                                          {.layers = 1,
                                                           .kv_heads = 1,
                                                           .head_dim = 8,
                                                           .block_tokens = kBlockTokens,
                                                           .dtype = DType::kF32},
                                                          kBlocks)
                                              .value();
};

TEST_F(WarmUpTest, EachSizeIsComputedAndRecorded) {
  NotingModel model(/*context_tokens=*/100);
  EXPECT_EQ(WarmUp(model, *cache_, {.chunk_tokens = 20, .sequences_max = 11}).value(), 11u);

  EXPECT_THAT(model.chunks, ElementsAre(20));
  EXPECT_THAT(model.decode_steps, ElementsAre(1, 1, 2, 2, 4, 4, 8, 8, 11, 11));
}

TEST_F(WarmUpTest, AWorkerThatOnlyReadsPromptsDecodesNothing) {
  NotingModel model(/*context_tokens=*/100);
  EXPECT_EQ(WarmUp(model, *cache_, {.chunk_tokens = 20}).value(), 1u);

  EXPECT_THAT(model.decode_steps, IsEmpty());
}

TEST_F(WarmUpTest, AChunkIsNoLongerThanTheContextAndTheCache) {
  NotingModel of_short_context(/*context_tokens=*/10);
  ASSERT_TRUE(WarmUp(of_short_context, *cache_, {.chunk_tokens = 512}).ok());
  NotingModel of_small_cache(/*context_tokens=*/1000);
  ASSERT_TRUE(WarmUp(of_small_cache, *cache_, {.chunk_tokens = 512}).ok());

  EXPECT_THAT(of_short_context.chunks, ElementsAre(10));
  EXPECT_THAT(of_small_cache.chunks, ElementsAre(kBlocks * kBlockTokens));
}

TEST_F(WarmUpTest, StepsThatAreNeverRecordedAreLeftOut) {
  NotingModel model(/*context_tokens=*/100);
  ASSERT_TRUE(WarmUp(model, *cache_, {.sequences_max = 65535}).ok());

  EXPECT_EQ(model.decode_steps.back(), 256u);
}

TEST_F(WarmUpTest, ACpuHasNothingToDoOnce) {
  NotingModel model(/*context_tokens=*/100);
  model.SampleNoTokens();
  EXPECT_EQ(WarmUp(model, *cache_, {.chunk_tokens = 20, .sequences_max = 11}).value(), 0u);

  EXPECT_THAT(model.chunks, IsEmpty());
  EXPECT_THAT(model.decode_steps, IsEmpty());
}

TEST_F(WarmUpTest, TheFirstErrorEndsIt) {
  NotingModel model(/*context_tokens=*/100);
  model.result = absl::UnavailableError("the GPU is lost");
  const auto steps = WarmUp(model, *cache_, {.chunk_tokens = 20, .sequences_max = 11});

  EXPECT_EQ(steps.status(), model.result);
  EXPECT_THAT(model.decode_steps, IsEmpty());
}

}  // namespace
}  // namespace baton
