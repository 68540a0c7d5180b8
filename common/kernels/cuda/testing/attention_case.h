// Random batches for the tests of attention kernels, and what they should give: a slow, obvious
// computation in double from the numbers as the device holds them.
//
// What no row may see is poison: NaN in the cache and in `out`, and no block at all in the table.
#ifndef BATON_COMMON_KERNELS_CUDA_TESTING_ATTENTION_CASE_H_
#define BATON_COMMON_KERNELS_CUDA_TESTING_ATTENTION_CASE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/tensor/dtype.h"
#include "common/tensor/kv_row.h"

namespace baton::cuda {

struct AttentionShape {
  DType type = DType::kBF16;     // Of q and out.
  DType kv_type = DType::kBF16;  // Of the cache.
  uint32_t heads = 8;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 128;
  uint32_t block_tokens = 16;
  uint32_t window = 0;
  float soft_cap = 0.0f;
  float value_deviation = 1.0f;  // Standard deviation of the numbers of V.
  uint32_t block_padding = 48;   // Bytes that a block has more than what the layer needs.
};

// Consecutive tokens of a sequence. count 0: a place that is not taken.
struct AttentionChunk {
  uint32_t position = 0;
  uint32_t count = 0;
};

// What a kernel loses when it rounds a weight of the softmax, of which the highest is 1.
struct WeightRounding {
  double relative = 0.0;
  double absolute = 0.0;
};

// Half the distance of neighbours near 1.
inline double RoundingOf(DType type) {
  switch (type) {
    case DType::kF32:
      return 0x1p-24;
    case DType::kF16:
      return 0x1p-11;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  return 0.5;
}

class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, const std::vector<AttentionChunk>& chunks,
                uint32_t seed)
      : shape_(shape), random_(seed) {
    for (const AttentionChunk& chunk : chunks) AddSequence(chunk);
    rows_ += kGap;
    row_sequence_.resize(rows_, ~0u);
    const size_t numbers = size_t{rows_} * shape.heads * shape.head_dim;
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (size_t i = 0; i < numbers; ++i) q_.push_back(normal(random_));
    q_ = Decode(Encode(q_, shape.type), shape.type);
    FillCache();
  }

  // The bytes that `attention` leaves in `out`. Every row of no sequence, and q of it, is poison.
  std::vector<std::byte> Run(
      absl::FunctionRef<cudaError_t(const Launch&, const AttentionArgs&)> attention) const {
    const DeviceArray<std::byte> q(PoisonedQ());
    const DeviceArray<std::byte> pages(pages_);
    const DeviceArray<DeviceSequence> sequences(sequences_);
    const DeviceArray<uint32_t> table(table_);
    const DeviceArray<uint32_t> row_sequence(row_sequence_);
    const DeviceArray<std::byte> out(q.bytes());
    AttentionArgs args = Args();
    args.q = q.data();
    args.out = out.data();
    args.pages.data = pages.data();
    args.table.sequences = sequences.data();
    args.table.block_table = table.data();
    args.table.row_sequence = row_sequence.data();
    EXPECT_EQ(attention(*Gpu(), args), cudaSuccess);
    return out.Read();
  }

  void ExpectReference(const std::vector<std::byte>& bytes, const WeightRounding& weights) const {
    const std::vector<float> out = Decode(bytes, shape_.type);
    ASSERT_EQ(out.size(), q_.size());
    std::vector<bool> expected(rows_);
    for (size_t i = 0; i < sequences_.size(); ++i) {
      for (uint32_t token = 0; token < sequences_[i].count; ++token) {
        expected[sequences_[i].row + token] = true;
        for (uint32_t head = 0; head < shape_.heads; ++head) {
          ExpectHead(out, i, token, head, weights);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
    const size_t row_bytes = bytes.size() / rows_;
    for (uint32_t row = 0; row < rows_; ++row) {
      if (expected[row]) continue;
      const auto begin = bytes.begin() + static_cast<ptrdiff_t>(row * row_bytes);
      EXPECT_TRUE(std::all_of(begin, begin + static_cast<ptrdiff_t>(row_bytes),
                              [](std::byte byte) { return byte == std::byte{0xff}; }))
          << "row " << row << " belongs to no sequence and was written";
    }
  }

  // Without pointers, which the device gives.
  AttentionArgs Args() const {
    AttentionArgs args;
    args.type = shape_.type;
    args.heads = shape_.heads;
    args.scale = Scale();
    args.window = shape_.window;
    args.soft_cap = shape_.soft_cap;
    args.pages = {.block_bytes = BlockBytes(),
                  .dtype = shape_.kv_type,
                  .kv_heads = shape_.kv_heads,
                  .head_dim = shape_.head_dim,
                  .block_tokens = shape_.block_tokens};
    args.table.count = static_cast<uint32_t>(sequences_.size());
    args.table.rows = rows_;
    args.table.blocks_end = static_cast<uint32_t>(table_.size());
    for (const DeviceSequence& sequence : sequences_) {
      args.table.count_max = std::max(args.table.count_max, sequence.count);
      if (sequence.count > 0) args.table.end_max = std::max(args.table.end_max, End(sequence));
    }
    return args;
  }

  // Host memory, for references other than ours.
  const std::vector<DeviceSequence>& sequences() const { return sequences_; }
  const std::vector<uint32_t>& table() const { return table_; }
  const std::vector<std::byte>& pages() const { return pages_; }
  const std::vector<float>& q() const { return q_; }

 private:
  static constexpr uint32_t kGap = 3;  // Rows of no sequence, before each and at the end.

  static uint32_t End(const DeviceSequence& sequence) { return sequence.position + sequence.count; }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  size_t RowBytes() const { return KvRowBytes(shape_.kv_type, shape_.head_dim); }
  size_t BlockBytes() const {
    return size_t{2} * shape_.kv_heads * shape_.block_tokens * RowBytes() + shape_.block_padding;
  }
  // First position that the token at `position` sees.
  uint32_t Begin(uint32_t position) const {
    return shape_.window == 0 || position < shape_.window ? 0 : position - shape_.window + 1;
  }

  // A place that is not taken has a row, and stands in the table of rows.
  void AddSequence(const AttentionChunk& chunk) {
    rows_ += kGap;
    row_sequence_.resize(rows_, ~0u);
    const DeviceSequence sequence = {.row = rows_,
                                     .count = chunk.count,
                                     .position = chunk.position,
                                     .blocks = static_cast<uint32_t>(table_.size())};
    rows_ += std::max(1u, chunk.count);
    row_sequence_.resize(rows_, static_cast<uint32_t>(sequences_.size()));
    sequences_.push_back(sequence);
    // One more than there are: it is not to be read either.
    table_.resize(table_.size() + End(sequence) / shape_.block_tokens + 2, ~0u);
    const size_t numbers = size_t{shape_.kv_heads} * End(sequence) * shape_.head_dim;
    keys_.emplace_back(numbers);
    values_.emplace_back(numbers);
  }

  void FillCache() {
    std::vector<uint32_t> ids(table_.size());
    std::iota(ids.begin(), ids.end(), 0u);
    std::shuffle(ids.begin(), ids.end(), random_);
    pages_.assign(ids.size() * BlockBytes(), std::byte{0xff});
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const DeviceSequence& sequence = sequences_[i];
      if (sequence.count == 0) continue;
      for (uint32_t at = Begin(sequence.position); at < End(sequence); ++at) {
        const size_t entry = sequence.blocks + at / shape_.block_tokens;
        table_[entry] = ids[entry];
        for (uint32_t head = 0; head < shape_.kv_heads; ++head) FillToken(i, head, at);
      }
    }
  }

  void FillToken(size_t i, uint32_t head, uint32_t position) {
    const uint32_t block = table_[sequences_[i].blocks + position / shape_.block_tokens];
    const size_t number = NumberOf(i, head, position);
    for (const bool value : {false, true}) {
      const size_t plane = (value ? shape_.kv_heads : 0) + head;
      const size_t at = plane * shape_.block_tokens + position % shape_.block_tokens;
      FillRow(value ? shape_.value_deviation : 1.0f,
              &pages_[block * BlockBytes() + at * RowBytes()],
              value ? &values_[i][number] : &keys_[i][number]);
    }
  }

  // A random row of the cache, as it lies there and as numbers.
  void FillRow(float deviation, std::byte* row, double* numbers) {
    if (shape_.kv_type == DType::kI8) {
      std::uniform_int_distribution<int> number(-128, 127);
      std::uniform_real_distribution<float> factor(0.5f, 1.5f);
      // The deviation of numbers that are uniform up to 128 is 128 / sqrt(3).
      const float scale = deviation * factor(random_) * std::sqrt(3.0f) / 128.0f;
      for (uint32_t d = 0; d < shape_.head_dim; ++d) {
        const int x = number(random_);
        row[d] = static_cast<std::byte>(x);
        numbers[d] = x * double{scale};
      }
      std::memcpy(row + shape_.head_dim, &scale, sizeof(scale));
      return;
    }
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> floats(shape_.head_dim);
    for (float& x : floats) x = normal(random_);
    if (shape_.kv_type == DType::kFp8) {
      const float scale = 4.0f * deviation / kE4m3Highest;
      for (uint32_t d = 0; d < shape_.head_dim; ++d) {
        const uint8_t x = F32ToE4m3(floats[d] / scale);
        row[d] = std::byte{x};
        numbers[d] = E4m3ToF32(x) * double{scale};
      }
      std::memcpy(row + shape_.head_dim, &scale, sizeof(scale));
      return;
    }
    const std::vector<std::byte> bytes = Encode(floats, shape_.kv_type);
    std::memcpy(row, bytes.data(), bytes.size());
    const std::vector<float> rounded = Decode(bytes, shape_.kv_type);
    std::copy(rounded.begin(), rounded.end(), numbers);
  }

  // Of K or V of sequence `i`: [kv_heads, end, head_dim].
  size_t NumberOf(size_t i, uint32_t kv_head, uint32_t position) const {
    return (size_t{kv_head} * End(sequences_[i]) + position) * shape_.head_dim;
  }

  std::vector<std::byte> PoisonedQ() const {
    std::vector<std::byte> bytes = Encode(q_, shape_.type);
    const size_t row_bytes = bytes.size() / rows_;
    for (uint32_t row = 0; row < rows_; ++row) {
      if (row_sequence_[row] != ~0u) continue;
      std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(row * row_bytes), row_bytes,
                  std::byte{0xff});
    }
    return bytes;
  }

  struct Scores {
    std::vector<double> weights;  // Of the keys that are seen; the highest is 1.
    double sum = 0.0;
    double magnitude = 0.0;  // The highest sum of |q k|, scaled.
  };
  Scores ScoresOf(const float* q, size_t i, uint32_t kv_head, uint32_t position) const {
    Scores scores;
    for (uint32_t at = Begin(position); at <= position; ++at) {
      const double* const k = &keys_[i][NumberOf(i, kv_head, at)];
      double score = 0.0;
      double magnitude = 0.0;
      for (uint32_t d = 0; d < shape_.head_dim; ++d) {
        score += double{q[d]} * k[d];
        magnitude += std::abs(double{q[d]} * k[d]);
      }
      score *= double{Scale()};
      const double cap = double{shape_.soft_cap};
      if (cap > 0.0) score = cap * std::tanh(score / cap);
      scores.weights.push_back(score);
      scores.magnitude = std::max(scores.magnitude, magnitude * double{Scale()});
    }
    const double highest = *std::max_element(scores.weights.begin(), scores.weights.end());
    for (double& weight : scores.weights) scores.sum += weight = std::exp(weight - highest);
    return scores;
  }

  // The tolerance, in units of m = sum(p |v|) / sum(p):
  //  - A score is a sum in float32, of 16 products or more at a time, with two roundings of at most
  //    2^-24 of sum(|q k|) each; scaling, capping and the exponential are less than 16 more. Its
  //    weight is off by as much, and so is the sum of weights.
  //  - Kernels divide the keys among four warps or add four or more at a time; a step multiplies
  //    and adds, in both sums, and rounds by 2^-24 each. 16 steps are for the merges.
  //  - Weights are rounded in the numerator as the kernel says; what that is off by regardless of
  //    their size is off by for each key.
  // The result is rounded once more.
  void ExpectHead(const std::vector<float>& out, size_t i, uint32_t token, uint32_t head,
                  const WeightRounding& rounding) const {
    const DeviceSequence& sequence = sequences_[i];
    const uint32_t dim = shape_.head_dim;
    const size_t row = (size_t{sequence.row + token} * shape_.heads + head) * dim;
    const uint32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    const uint32_t position = sequence.position + token;
    const Scores scores = ScoresOf(&q_[row], i, kv_head, position);
    std::vector<double> expected(dim);
    std::vector<double> magnitude(dim);
    double value_max = 0.0;
    for (size_t key = 0; key < scores.weights.size(); ++key) {
      const double* const v = &values_[i][NumberOf(i, kv_head, Begin(position)) + key * dim];
      for (uint32_t d = 0; d < dim; ++d) {
        expected[d] += scores.weights[key] / scores.sum * v[d];
        magnitude[d] += scores.weights[key] / scores.sum * std::abs(v[d]);
        value_max = std::max(value_max, std::abs(v[d]));
      }
    }
    const auto keys = static_cast<double>(scores.weights.size());
    const double of_scores = 2 * (dim / 16 + 16) * 0x1p-23 * scores.magnitude;
    const double of_sums = 2 * (keys / 4 + 16) * 0x1p-23;
    const double of_all = keys * rounding.absolute * value_max / scores.sum;
    for (uint32_t d = 0; d < dim; ++d) {
      const double before = (of_scores + of_sums + rounding.relative) * magnitude[d] + of_all;
      const double tolerance = before + RoundingOf(shape_.type) * (std::abs(expected[d]) + before);
      // False for NaN.
      ASSERT_TRUE(std::abs(double{out[row + d]} - expected[d]) <= tolerance)
          << "sequence " << i << " position " << position << " head " << head << " element " << d
          << ": " << out[row + d] << " instead of " << expected[d] << " +- " << tolerance;
    }
  }

  const AttentionShape shape_;
  std::mt19937 random_;
  uint32_t rows_ = 0;
  std::vector<DeviceSequence> sequences_;
  std::vector<uint32_t> row_sequence_;
  std::vector<uint32_t> table_;
  std::vector<std::byte> pages_;
  std::vector<float> q_;
  // Of each sequence.
  std::vector<std::vector<double>> keys_;
  std::vector<std::vector<double>> values_;
};

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_TESTING_ATTENTION_CASE_H_
