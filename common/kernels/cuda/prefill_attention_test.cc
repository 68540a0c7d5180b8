#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/tensor/dtype.h"

namespace baton::cuda {
namespace {

struct Chunk {
  uint32_t position = 0;
  uint32_t count = 0;
};

struct Shape {
  DType type = DType::kBF16;
  uint32_t heads = 8;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 128;
  uint32_t block_tokens = 16;
  uint32_t window = 0;
  float soft_cap = 0.0f;
};

uint32_t FirstSeen(uint32_t position, uint32_t window) {
  return window == 0 || position < window ? 0 : position - window + 1;
}

// A batch in device memory and what its tokens are computed from. Whatever no row sees is NaN in
// the cache and no block at all in the table; between the sequences are rows of none.
class Batch {
 public:
  Batch(const Shape& shape, const std::vector<Chunk>& chunks, uint32_t seed)
      : shape_(shape), random_(seed) {
    for (const Chunk& chunk : chunks) AddSequence(chunk);
    rows_ += kGap;
    q_ = Normal(size_t{rows_} * shape.heads * shape.head_dim, 3.0f);
    FillCache();
  }

  // The output's bytes, with the sequences as they are or cut into other chunks.
  std::vector<std::byte> Run() const { return Run(sequences_); }
  std::vector<std::byte> Run(const std::vector<DeviceSequence>& sequences) const {
    const DeviceArray<std::byte> q(Encode(q_, shape_.type));
    const DeviceArray<std::byte> pages(pages_);
    const DeviceArray<DeviceSequence> device_sequences(sequences);
    const DeviceArray<uint32_t> table(table_);
    const DeviceArray<std::byte> out(q.bytes());
    AttentionArgs args;
    args.q = q.data();
    args.out = out.data();
    args.type = shape_.type;
    args.heads = shape_.heads;
    args.pages = Pages(pages.data());
    args.scale = Scale();
    args.window = shape_.window;
    args.soft_cap = shape_.soft_cap;
    args.table.sequences = device_sequences.data();
    args.table.block_table = table.data();
    args.table.count = static_cast<uint32_t>(sequences.size());
    args.table.rows = rows_;
    for (const DeviceSequence& sequence : sequences) {
      args.table.count_max = std::max(args.table.count_max, sequence.count);
      args.table.end_max = std::max(args.table.end_max, sequence.position + sequence.count);
    }
    EXPECT_TRUE(PrefillAttentionFits(args));
    EXPECT_EQ(PrefillAttention(*Gpu(), args), cudaSuccess);
    return out.Read();
  }

  void ExpectReference(const std::vector<std::byte>& bytes) const {
    const std::vector<float> out = Decode(bytes, shape_.type);
    std::vector<bool> written(rows_);
    for (size_t i = 0; i < sequences_.size(); ++i) {
      for (uint32_t token = 0; token < sequences_[i].count; ++token) {
        written[sequences_[i].row + token] = true;
        for (uint32_t head = 0; head < shape_.heads; ++head) ExpectHead(out, i, token, head);
        if (testing::Test::HasFailure()) return;
      }
    }
    const size_t row_bytes = size_t{shape_.heads} * shape_.head_dim * 2;
    for (uint32_t row = 0; row < rows_; ++row) {
      if (written[row]) continue;
      EXPECT_TRUE(std::all_of(&bytes[row * row_bytes], &bytes[row * row_bytes] + row_bytes,
                              [](std::byte byte) { return byte == std::byte{0xff}; }))
          << "row " << row << " belongs to no sequence and was written";
    }
  }

  const std::vector<DeviceSequence>& sequences() const { return sequences_; }

 private:
  static constexpr uint32_t kGap = 3;

  // As the device sees them.
  std::vector<float> Normal(size_t count, float deviation) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return Decode(Encode(values, shape_.type), shape_.type);
  }

  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  // A pitch that is more than what the layer needs.
  DevicePages Pages(std::byte* data) const {
    return {.data = data,
            .block_bytes = size_t{2} * shape_.kv_heads * shape_.block_tokens * RowBytes() + 48,
            .dtype = shape_.type,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim,
            .block_tokens = shape_.block_tokens};
  }

  size_t RowBytes() const { return size_t{shape_.head_dim} * 2; }

  void AddSequence(const Chunk& chunk) {
    rows_ += kGap;
    const uint32_t end = chunk.position + chunk.count;
    sequences_.push_back({.row = rows_,
                          .count = chunk.count,
                          .position = chunk.position,
                          .blocks = static_cast<uint32_t>(table_.size())});
    rows_ += chunk.count;
    // One more than there are: it is not to be read either.
    table_.resize(table_.size() + (end + shape_.block_tokens - 1) / shape_.block_tokens + 1, ~0u);
    const size_t numbers = size_t{shape_.kv_heads} * end * shape_.head_dim;
    keys_.push_back(Normal(numbers, 1.0f));
    values_.push_back(Normal(numbers, 1.0f));
  }

  void FillCache() {
    std::vector<uint32_t> ids(table_.size());
    std::iota(ids.begin(), ids.end(), 0u);
    std::shuffle(ids.begin(), ids.end(), random_);
    pages_.assign(ids.size() * Pages(nullptr).block_bytes, std::byte{0xff});
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const DeviceSequence& sequence = sequences_[i];
      if (sequence.count == 0) continue;
      for (uint32_t position = FirstSeen(sequence.position, shape_.window);
           position < sequence.position + sequence.count; ++position) {
        const size_t entry = sequence.blocks + position / shape_.block_tokens;
        table_[entry] = ids[entry];
        for (uint32_t head = 0; head < shape_.kv_heads; ++head) WriteRow(i, head, position);
      }
    }
  }

  void WriteRow(size_t i, uint32_t head, uint32_t position) {
    const size_t block =
        table_[sequences_[i].blocks + position / shape_.block_tokens] * Pages(nullptr).block_bytes;
    for (const bool value : {false, true}) {
      const float* const from = Row(value ? values_ : keys_, i, head, position);
      const std::vector<std::byte> row =
          Encode(std::vector<float>(from, from + shape_.head_dim), shape_.type);
      const size_t plane = (value ? shape_.kv_heads : 0) + head;
      const size_t at = plane * shape_.block_tokens + position % shape_.block_tokens;
      std::memcpy(&pages_[block + at * RowBytes()], row.data(), row.size());
    }
  }

  const float* Row(const std::vector<std::vector<float>>& rows, size_t i, uint32_t head,
                   uint32_t position) const {
    const uint32_t end = sequences_[i].position + sequences_[i].count;
    return &rows[i][(size_t{head} * end + position) * shape_.head_dim];
  }

  double Score(const float* q, const float* k) const {
    double product = 0.0;
    for (uint32_t d = 0; d < shape_.head_dim; ++d) product += double{q[d]} * double{k[d]};
    product *= double{Scale()};
    const double cap = double{shape_.soft_cap};
    return cap > 0.0 ? cap * std::tanh(product / cap) : product;
  }

  // The tolerance. With u, half the distance of two numbers of the type near 1: rounding the
  // probabilities p, relative to the highest, adds at most u sum(p |v|), rounding the output
  // u |out|. A score is summed in float32 in steps of 16 products, which for heads of 128 is 8
  // roundings of at most 2^-23 of a partial sum below 2^6: it is off by less than 2^-13, its
  // probability and the sum of them by that each; of longer heads by as much more. Of f16, p below
  // 2^-14 is off by up to 2^-25 for each key.
  void ExpectHead(const std::vector<float>& out, size_t i, uint32_t token, uint32_t head) const {
    const DeviceSequence& sequence = sequences_[i];
    const uint32_t dim = shape_.head_dim;
    const size_t row = (size_t{sequence.row + token} * shape_.heads + head) * dim;
    const uint32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    const uint32_t position = sequence.position + token;
    const uint32_t begin = FirstSeen(position, shape_.window);
    std::vector<double> p;
    for (uint32_t key = begin; key <= position; ++key) {
      p.push_back(Score(&q_[row], Row(keys_, i, kv_head, key)));
    }
    const double max = *std::max_element(p.begin(), p.end());
    double sum = 0.0;
    for (double& x : p) sum += x = std::exp(x - max);
    std::vector<double> expected(dim);
    std::vector<double> magnitude(dim);
    double value_max = 0.0;
    for (size_t key = 0; key < p.size(); ++key) {
      const float* const v = Row(values_, i, kv_head, begin + static_cast<uint32_t>(key));
      for (uint32_t d = 0; d < dim; ++d) {
        expected[d] += p[key] / sum * double{v[d]};
        magnitude[d] += p[key] / sum * std::abs(double{v[d]});
        value_max = std::max(value_max, std::abs(double{v[d]}));
      }
    }
    const double u = shape_.type == DType::kBF16 ? 0x1p-8 : 0x1p-11;
    for (uint32_t d = 0; d < dim; ++d) {
      const double tolerance = (2 * u + 0x1p-12 * dim / 128) * magnitude[d] +
                               static_cast<double>(p.size()) * 0x1p-25 * value_max;
      ASSERT_NEAR(double{out[row + d]}, expected[d], tolerance)
          << "sequence " << i << " position " << position << " head " << head << " element " << d;
    }
  }

  const Shape shape_;
  std::mt19937 random_;
  uint32_t rows_ = 0;
  std::vector<DeviceSequence> sequences_;
  std::vector<uint32_t> table_;
  std::vector<std::byte> pages_;
  std::vector<float> q_;
  // Of each sequence: [kv_heads, end, head_dim].
  std::vector<std::vector<float>> keys_;
  std::vector<std::vector<float>> values_;
};

// Chunks at the beginning and behind a prefix, long and short ones, and a place that is not taken.
const std::vector<Chunk> kRagged = {{0, 5},     {0, 64},   {37, 1}, {0, 0},
                                    {100, 127}, {64, 130}, {0, 300}};

void ExpectRaggedBatch(const Shape& shape, uint32_t seed) {
  const Batch batch(shape, kRagged, seed);
  batch.ExpectReference(batch.Run());
}

TEST(PrefillAttentionTest, OneQueryHeadForEachKvHead) {
  SKIP_WITHOUT_GPU();
  ExpectRaggedBatch({.heads = 2, .kv_heads = 2}, 1);
}

TEST(PrefillAttentionTest, QueryHeadsShareAKvHead) {
  SKIP_WITHOUT_GPU();
  ExpectRaggedBatch({.heads = 8, .kv_heads = 2}, 2);
  ExpectRaggedBatch({.heads = 7, .kv_heads = 1}, 3);
  ExpectRaggedBatch({.heads = 8, .kv_heads = 1, .block_tokens = 32}, 4);
}

TEST(PrefillAttentionTest, EveryHeadSize) {
  SKIP_WITHOUT_GPU();
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 64}, 5);
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 96}, 6);
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 128, .block_tokens = 128}, 7);
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 256}, 16);
  ExpectRaggedBatch({.heads = 3, .kv_heads = 1, .head_dim = 256, .block_tokens = 32}, 17);
}

TEST(PrefillAttentionTest, Float16) {
  SKIP_WITHOUT_GPU();
  ExpectRaggedBatch({.type = DType::kF16, .heads = 4, .kv_heads = 1, .head_dim = 64}, 8);
  ExpectRaggedBatch({.type = DType::kF16, .heads = 4, .kv_heads = 2, .head_dim = 128}, 9);
  ExpectRaggedBatch({.type = DType::kF16, .heads = 2, .kv_heads = 1, .head_dim = 256}, 18);
}

TEST(PrefillAttentionTest, WindowHidesWhatIsBeforeIt) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t window : {1u, 17u, 64u, 100u}) {
    ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .window = window}, 10 + window);
  }
  const Batch batch({.heads = 4, .kv_heads = 1, .head_dim = 64, .block_tokens = 48, .window = 70},
                    {{1000, 130}, {511, 1}}, 11);
  batch.ExpectReference(batch.Run());
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 256, .window = 40}, 19);
}

TEST(PrefillAttentionTest, SoftCapBoundsScores) {
  SKIP_WITHOUT_GPU();
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .soft_cap = 5.0f}, 12);
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 64, .window = 90, .soft_cap = 2.0f},
                    13);
  ExpectRaggedBatch({.heads = 4, .kv_heads = 2, .head_dim = 256, .window = 90, .soft_cap = 5.0f},
                    20);
}

TEST(PrefillAttentionTest, LongPrefix) {
  SKIP_WITHOUT_GPU();
  const Batch batch({.heads = 4, .kv_heads = 1, .block_tokens = 64}, {{3000, 33}, {2047, 2}}, 14);
  batch.ExpectReference(batch.Run());
}

TEST(PrefillAttentionTest, ChunksGiveTheBitsOfTheWhole) {
  SKIP_WITHOUT_GPU();
  for (const auto& [head_dim, window] :
       {std::pair(128u, 0u), {128u, 75u}, {256u, 0u}, {256u, 75u}}) {
    const Batch batch({.heads = 8, .kv_heads = 2, .head_dim = head_dim, .window = window},
                      {{0, 300}}, 15);
    const std::vector<std::byte> whole = batch.Run();

    std::vector<DeviceSequence> chunks;
    const DeviceSequence sequence = batch.sequences()[0];
    uint32_t done = 0;
    for (const uint32_t count : {1u, 130u, 5u, 64u, 100u}) {
      chunks.push_back({.row = sequence.row + done,
                        .count = count,
                        .position = done,
                        .blocks = sequence.blocks});
      done += count;
    }
    ASSERT_EQ(done, sequence.count);

    EXPECT_EQ(batch.Run(chunks), whole) << "window " << window << ", heads of " << head_dim;
  }
}

TEST(PrefillAttentionTest, FitsOnlyWhatItComputes) {
  AttentionArgs args;
  args.type = DType::kBF16;
  args.heads = 8;
  args.scale = 0.1f;
  args.pages = {.block_bytes = 65536,
                .dtype = DType::kBF16,
                .kv_heads = 2,
                .head_dim = 128,
                .block_tokens = 16};
  EXPECT_TRUE(PrefillAttentionFits(args));

  for (const uint32_t head_dim : {64u, 96u, 256u}) {
    AttentionArgs other_heads = args;
    other_heads.pages.head_dim = head_dim;
    EXPECT_TRUE(PrefillAttentionFits(other_heads)) << head_dim;
  }
  AttentionArgs quantized = args;
  quantized.pages.dtype = DType::kI8;
  EXPECT_FALSE(PrefillAttentionFits(quantized));
  AttentionArgs small_blocks = args;
  small_blocks.pages.block_tokens = 8;
  EXPECT_FALSE(PrefillAttentionFits(small_blocks));
  AttentionArgs odd_head = args;
  odd_head.pages.head_dim = 80;
  EXPECT_FALSE(PrefillAttentionFits(odd_head));
}

}  // namespace
}  // namespace baton::cuda
