#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/attention_case.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/tensor/dtype.h"

namespace baton::cuda {
namespace {

// Single tokens and chunks, at the beginning and behind a prefix; places that are not taken.
const std::vector<AttentionChunk> kBatch = {{0, 1},  {14, 1}, {0, 0},  {15, 1}, {16, 3},
                                            {99, 1}, {77, 0}, {0, 20}, {995, 5}};

// Weights are float32.
void ExpectReference(const AttentionShape& shape, const std::vector<AttentionChunk>& chunks,
                     uint32_t seed) {
  SCOPED_TRACE(testing::Message() << DTypeName(shape.type) << " over " << DTypeName(shape.kv_type)
                                  << ", " << shape.heads << "/" << shape.kv_heads << " heads of "
                                  << shape.head_dim << ", window " << shape.window);
  const AttentionCase batch(shape, chunks, seed);
  batch.ExpectReference(batch.Run(AttentionAny), {});
}

TEST(AttentionAnyTest, EveryTypeOverEveryCache) {
  SKIP_WITHOUT_GPU();
  uint32_t seed = 100;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const DType kv_type : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kFp8}) {
      ExpectReference({.type = type, .kv_type = kv_type, .heads = 4, .head_dim = 64}, kBatch,
                      ++seed);
    }
  }
}

TEST(AttentionAnyTest, HeadsOfEverySize) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t head_dim : {1u, 31u, 40u, 96u, 128u, 129u, 256u, 257u, 1024u}) {
    // A row of 8 bits has its scale where a float may lie only if head_dim allows it.
    for (const DType kv_type : {DType::kF32, DType::kI8, DType::kFp8}) {
      ExpectReference({.type = DType::kF32,
                       .kv_type = kv_type,
                       .heads = 2,
                       .kv_heads = 1,
                       .head_dim = head_dim},
                      {{0, 1}, {17, 2}, {130, 3}}, 200 + head_dim);
    }
  }
}

TEST(AttentionAnyTest, QueryHeadsShareAKvHead) {
  SKIP_WITHOUT_GPU();
  ExpectReference({.heads = 3, .kv_heads = 3, .head_dim = 64}, kBatch, 300);
  ExpectReference({.heads = 8, .kv_heads = 2, .head_dim = 64}, kBatch, 301);
  ExpectReference({.heads = 8, .kv_heads = 1, .head_dim = 64}, kBatch, 302);
}

TEST(AttentionAnyTest, BlocksOfEverySize) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t block_tokens : {1u, 4u, 7u, 16u, 64u}) {
    ExpectReference({.heads = 4, .head_dim = 40, .block_tokens = block_tokens}, kBatch,
                    400 + block_tokens);
  }
}

TEST(AttentionAnyTest, WindowHidesWhatIsBeforeIt) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t window : {1u, 2u, 16u, 17u, 100u, 5000u}) {
    ExpectReference({.heads = 4, .head_dim = 64, .window = window}, kBatch, 500 + window);
  }
}

TEST(AttentionAnyTest, SoftCapBoundsScores) {
  SKIP_WITHOUT_GPU();
  ExpectReference({.heads = 4, .head_dim = 64, .soft_cap = 5.0f}, kBatch, 600);
  ExpectReference({.heads = 4, .head_dim = 64, .window = 50, .soft_cap = 2.0f}, kBatch, 601);
}

TEST(AttentionAnyTest, LongSequence) {
  SKIP_WITHOUT_GPU();
  ExpectReference({.type = DType::kF32, .kv_type = DType::kF32, .heads = 4}, {{4999, 1}}, 700);
}

TEST(AttentionAnyTest, RefusesHeadsThatAreTooLong) {
  SKIP_WITHOUT_GPU();
  AttentionArgs args = AttentionCase({}, {{0, 1}}, 800).Args();
  args.pages.head_dim = 1025;

  EXPECT_EQ(AttentionAny(*Gpu(), args), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace baton::cuda
