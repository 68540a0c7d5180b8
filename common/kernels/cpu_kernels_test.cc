// Goal: each CPU kernel computes what its definition says, and the same bits for every number of
// rows, thread count and instruction set. Method: hand-computed cases; slow, obvious twins in
// double precision; comparisons of bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/kernels.h"
#include "common/tensor/number_formats.h"

namespace baton {
namespace {

using Floats = std::vector<float>;

std::unique_ptr<KernelContext> MakeContext(uint32_t threads = 1, CpuIsa isa = BestCpuIsa()) {
  return KernelContext::Create({.threads = threads, .cpu_isa = isa}).value();
}

// Instruction sets of this machine.
std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : {CpuIsa::kBaseline, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (FindCpuOps(isa) != nullptr) isas.push_back(isa);
  }
  return isas;
}

Floats Random(size_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TensorView View(Floats& values, std::initializer_list<size_t> shape) {
  return TensorView(reinterpret_cast<std::byte*>(values.data()), DType::kF32, DeviceKind::kCpu,
                    shape);
}

bool SameBits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A matrix in one of the weight types, with the values that it really holds.
struct Matrix {
  Matrix(const Floats& wanted, DType type, size_t rows, size_t columns) : values(wanted) {
    bytes.resize(wanted.size() * DTypeBytes(type));
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (type == DType::kF32) {
        std::memcpy(bytes.data() + i * sizeof(float), &wanted[i], sizeof(float));
        continue;
      }
      const uint16_t bits = type == DType::kBF16 ? F32ToBf16(wanted[i]) : F32ToF16(wanted[i]);
      std::memcpy(bytes.data() + i * sizeof(bits), &bits, sizeof(bits));
      values[i] = type == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
    }
    view = ConstTensorView(bytes.data(), type, DeviceKind::kCpu, {rows, columns});
  }

  std::vector<std::byte> bytes;
  Floats values;
  ConstTensorView view;
};

constexpr DType kWeightTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// |error| <= count * 2^-24 * sum of magnitudes bounds any order of adding `count` products.
double SumTolerance(size_t count, double magnitude) {
  return (static_cast<double>(count) + 2.0) * 0x1p-24 * magnitude + 1e-30;
}

TEST(LinearTest, TwoByTwoByHand) {
  auto context = MakeContext();
  Floats x = {1.0f, 2.0f, 3.0f, 4.0f};
  Floats weight = {5.0f, 6.0f, 7.0f, 8.0f};
  Floats bias = {0.5f, -0.5f};
  Floats out(4);

  Linear(*context, View(x, {2, 2}), View(weight, {2, 2}), View(bias, {2}), View(out, {2, 2}));

  EXPECT_EQ(out, (Floats{17.5f, 22.5f, 39.5f, 52.5f}));
}

TEST(LinearTest, EqualsNaiveTwin) {
  for (CpuIsa isa : Isas()) {
    auto context = MakeContext(1, isa);
    for (DType dtype : kWeightTypes) {
      for (size_t k : {1, 15, 16, 33, 200}) {
        for (size_t m : {1, 2, 3, 7, 50}) {
          const size_t n = 21;
          Floats x = Random(m * k, 1);
          const Matrix weight(Random(n * k, 2), dtype, n, k);
          Floats bias = Random(n, 3);
          Floats out(m * n);

          Linear(*context, View(x, {m, k}), weight.view, View(bias, {n}), View(out, {m, n}));

          for (size_t i = 0; i < m * n; ++i) {
            double sum = bias[i % n];
            double magnitude = std::abs(sum);
            for (size_t j = 0; j < k; ++j) {
              const double product =
                  static_cast<double>(x[i / n * k + j]) * weight.values[i % n * k + j];
              sum += product;
              magnitude += std::abs(product);
            }
            ASSERT_NEAR(out[i], sum, SumTolerance(k, magnitude))
                << CpuIsaName(isa) << " " << DTypeName(dtype) << " k " << k << " m " << m;
          }
        }
      }
    }
  }
}

// Lanes are summed in the documented order: a twin that does the same has the same bits.
TEST(LinearTest, SumsInTheDocumentedOrder) {
  const size_t k = 100;
  Floats x = Random(k, 4);
  Floats weight = Random(k, 5);
  float lanes[16] = {};
  for (size_t i = 0; i < k; ++i) {
    const float product = x[i] * weight[i];
    lanes[i % 16] = lanes[i % 16] + product;
  }
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  }

  for (CpuIsa isa : Isas()) {
    Floats out(1);
    Linear(*MakeContext(1, isa), View(x, {1, k}), View(weight, {1, k}), ConstTensorView(),
           View(out, {1, 1}));
    EXPECT_EQ(out[0], lanes[0]) << CpuIsaName(isa);
  }
}

TEST(LinearTest, BitsDependOnNeitherRowsNorThreadsNorIsa) {
  const size_t m = 101;
  const size_t k = 300;
  const size_t n = 261;
  Floats x = Random(m * k, 6);
  Floats bias = Random(n, 7);
  for (DType dtype : kWeightTypes) {
    const Matrix weight(Random(n * k, 8), dtype, n, k);
    Floats reference(m * n);
    Linear(*MakeContext(1, CpuIsa::kBaseline), View(x, {m, k}), weight.view, View(bias, {n}),
           View(reference, {m, n}));

    for (CpuIsa isa : Isas()) {
      for (uint32_t threads : {1u, 2u, 3u, 4u}) {
        auto context = MakeContext(threads, isa);
        for (size_t rows : {size_t{1}, size_t{2}, size_t{5}, size_t{48}, size_t{60}, m}) {
          Floats out(rows * n);
          Linear(*context, View(x, {m, k}).Rows(m - rows, rows), weight.view, View(bias, {n}),
                 View(out, {rows, n}));
          ASSERT_TRUE(SameBits(out, Floats(reference.end() - rows * n, reference.end())))
              << CpuIsaName(isa) << " threads " << threads << " rows " << rows;
        }
      }
    }
  }
}

TEST(LinearTest, ManyRowsOfAWideMatrixOnFourThreads) {
  // Large enough that every thread gets several tasks.
  const size_t m = 100;
  const size_t k = 256;
  const size_t n = 1000;
  Floats x = Random(m * k, 9);
  const Matrix weight(Random(n * k, 10), DType::kBF16, n, k);
  Floats one(m * n);
  Floats four(m * n);

  Linear(*MakeContext(1), View(x, {m, k}), weight.view, ConstTensorView(), View(one, {m, n}));
  Linear(*MakeContext(4), View(x, {m, k}), weight.view, ConstTensorView(), View(four, {m, n}));

  EXPECT_TRUE(SameBits(one, four));
}

TEST(RmsNormTest, ByHand) {
  auto context = MakeContext();
  Floats x = {3.0f, 4.0f};
  Floats weight = {1.0f, 2.0f};
  Floats out(2);

  RmsNorm(*context, View(x, {1, 2}), View(weight, {2}), 0.0f, View(out, {1, 2}));

  const float norm = std::sqrt(12.5f);
  EXPECT_NEAR(out[0], 3.0f / norm, 1e-6f);
  EXPECT_NEAR(out[1], 8.0f / norm, 1e-6f);
}

TEST(RmsNormTest, EqualsTwinInEveryIsaAndInPlace) {
  const size_t rows = 5;
  const size_t n = 77;
  Floats x = Random(rows * n, 11);
  Floats weight = Random(n, 12);
  Floats reference(rows * n);
  RmsNorm(*MakeContext(1, CpuIsa::kBaseline), View(x, {rows, n}), View(weight, {n}), 1e-5f,
          View(reference, {rows, n}));

  for (size_t i = 0; i < rows * n; ++i) {
    double squares = 0.0;
    for (size_t j = 0; j < n; ++j) squares += std::pow(static_cast<double>(x[i / n * n + j]), 2);
    const double expected =
        x[i] / std::sqrt(squares / static_cast<double>(n) + 1e-5) * weight[i % n];
    ASSERT_NEAR(reference[i], expected, 1e-6 * std::abs(expected));
  }
  for (CpuIsa isa : Isas()) {
    Floats in_place = x;
    RmsNorm(*MakeContext(2, isa), View(in_place, {rows, n}), View(weight, {n}), 1e-5f,
            View(in_place, {rows, n}));
    EXPECT_TRUE(SameBits(in_place, reference)) << CpuIsaName(isa);
  }
}

TEST(RopeTest, QuarterTurnPairsElementWithItsHalf) {
  auto context = MakeContext();
  Floats cosines = {0.0f, 1.0f};
  Floats sines = {1.0f, 0.0f};
  Floats x = {1.0f, 2.0f, 3.0f, 4.0f};  // One head: pairs (1, 3) and (2, 4).

  Rope(*context, View(cosines, {1, 2}), View(sines, {1, 2}), View(x, {1, 1, 4}));

  EXPECT_EQ(x, (Floats{-3.0f, 2.0f, 1.0f, 4.0f}));
}

TEST(EmbeddingTest, ReadsEveryWeightType) {
  auto context = MakeContext();
  for (DType dtype : kWeightTypes) {
    const Matrix table(Random(5 * 3, 13), dtype, 5, 3);
    const std::vector<TokenId> ids = {4, 0, 4};
    Floats out(9);

    Embedding(*context, table.view, ids, View(out, {3, 3}));

    for (size_t i = 0; i < 9; ++i) EXPECT_EQ(out[i], table.values[ids[i / 3] * 3 + i % 3]);
  }
}

TEST(ElementwiseTest, SiluMulAddAndGather) {
  for (CpuIsa isa : Isas()) {
    auto context = MakeContext(1, isa);
    const size_t n = 37;
    Floats gate = Random(n, 14, 4.0f);
    Floats up = Random(n, 15);
    Floats out(n);

    SiluMul(*context, View(gate, {1, n}), View(up, {1, n}), View(out, {1, n}));

    for (size_t i = 0; i < n; ++i) {
      const double expected = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
      ASSERT_NEAR(out[i], expected, 1e-6 * std::abs(expected));
    }
    Floats sum = gate;
    Add(*context, View(up, {1, n}), View(sum, {1, n}));
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(sum[i], gate[i] + up[i]);
  }
  Floats x = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  Floats gathered(4);
  GatherRows(*MakeContext(), View(x, {3, 2}), std::vector<uint32_t>{2, 0}, View(gathered, {2, 2}));
  EXPECT_EQ(gathered, (Floats{5.0f, 6.0f, 1.0f, 2.0f}));
}

TEST(ExpTest, VectorTwinHasTheBitsOfTheScalarOne) {
  Floats x;
  for (float value = -95.0f; value < 95.0f; value += 0.01f) x.push_back(value);
  const float infinity = std::numeric_limits<float>::infinity();
  for (float value : {0.0f, -0.0f, -87.33f, 88.37f, infinity, -infinity}) x.push_back(value);

  for (CpuIsa isa : Isas()) {
    Floats out(x.size());
    FindCpuOps(isa)->exp(x.data(), x.size(), out.data());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(out[i], StableExp(x[i])) << CpuIsaName(isa) << " " << x[i];
    }
  }
}

// A paged cache of one layer with scattered blocks, and queries for one or more sequences.
class AttentionCase {
 public:
  struct Shape {
    uint32_t heads = 4;
    uint32_t kv_heads = 2;
    uint32_t head_dim = 16;
    uint32_t block_tokens = 16;
    DType dtype = DType::kF32;
    uint32_t length = 0;  // Tokens of the sequence.
  };

  explicit AttentionCase(const Shape& shape) : shape_(shape) {
    const size_t blocks = (shape.length + shape.block_tokens - 1) / shape.block_tokens;
    for (size_t i = 0; i < blocks; ++i)
      blocks_.push_back(BlockId{static_cast<uint32_t>(2 * i + 1)});
    std::shuffle(blocks_.begin(), blocks_.end(), std::mt19937(1));
    const size_t block_bytes =
        size_t{2} * shape.kv_heads * shape.block_tokens * shape.head_dim * DTypeBytes(shape.dtype);
    // Bytes that nobody wrote are NaN: whoever reads them shows.
    memory_.assign((2 * blocks + 1) * block_bytes, std::byte{0xff});
    pages_ = {.data = memory_.data(),
              .block_bytes = block_bytes,
              .dtype = shape.dtype,
              .kv_heads = shape.kv_heads,
              .head_dim = shape.head_dim,
              .block_tokens = shape.block_tokens};
    q_ = Random(size_t{shape.length} * shape.heads * shape.head_dim, 20);
    k_ = Random(size_t{shape.length} * shape.kv_heads * shape.head_dim, 21);
    v_ = Random(size_t{shape.length} * shape.kv_heads * shape.head_dim, 22);
  }

  // Writes K and V of [begin, end), then attends from these positions.
  void Step(KernelContext& context, uint32_t begin, uint32_t end, Floats* out) {
    const uint32_t count = end - begin;
    const SequenceRows rows = {.row = 0, .count = count, .position = begin, .blocks = blocks_};
    const size_t kv_row = size_t{shape_.kv_heads} * shape_.head_dim;
    const size_t q_row = size_t{shape_.heads} * shape_.head_dim;
    Floats k(k_.begin() + begin * kv_row, k_.begin() + end * kv_row);
    Floats v(v_.begin() + begin * kv_row, v_.begin() + end * kv_row);
    Floats q(q_.begin() + begin * q_row, q_.begin() + end * q_row);
    Floats part(q.size());
    WriteKv(context, View(k, {count, shape_.kv_heads, shape_.head_dim}),
            View(v, {count, shape_.kv_heads, shape_.head_dim}), {&rows, 1}, pages_);
    Attention(context, View(q, {count, shape_.heads, shape_.head_dim}), pages_, {&rows, 1}, kScale,
              View(part, {count, shape_.heads, shape_.head_dim}));
    out->insert(out->end(), part.begin(), part.end());
  }
  Floats OnePass(KernelContext& context) {
    Floats out;
    Step(context, 0, shape_.length, &out);
    return out;
  }

  // The definition, in double precision.
  double Expected(uint32_t position, uint32_t head, uint32_t dim) const {
    const uint32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    std::vector<double> scores;
    for (uint32_t j = 0; j <= position; ++j) {
      double dot = 0.0;
      for (uint32_t d = 0; d < shape_.head_dim; ++d) {
        dot += static_cast<double>(q_[(position * shape_.heads + head) * shape_.head_dim + d]) *
               Stored(k_[(j * shape_.kv_heads + kv_head) * shape_.head_dim + d]);
      }
      scores.push_back(dot * kScale);
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    double output = 0.0;
    for (uint32_t j = 0; j <= position; ++j) {
      const double weight = std::exp(scores[j] - highest);
      sum += weight;
      output += weight * Stored(v_[(j * shape_.kv_heads + kv_head) * shape_.head_dim + dim]);
    }
    return output / sum;
  }

  const Shape& shape() const { return shape_; }

 private:
  static constexpr float kScale = 0.25f;

  double Stored(float value) const {
    return shape_.dtype == DType::kF32 ? value : Bf16ToF32(F32ToBf16(value));
  }

  const Shape shape_;
  std::vector<BlockId> blocks_;
  std::vector<std::byte> memory_;
  KvPages pages_;
  Floats q_;
  Floats k_;
  Floats v_;
};

TEST(AttentionTest, OneTokenReturnsItsValue) {
  auto context = MakeContext();
  std::vector<std::byte> memory(2 * 2 * sizeof(float));
  const KvPages pages = {.data = memory.data(),
                         .block_bytes = memory.size(),
                         .kv_heads = 1,
                         .head_dim = 2,
                         .block_tokens = 1};
  const std::vector<BlockId> blocks = {BlockId{0}};
  const SequenceRows rows = {.row = 0, .count = 1, .position = 0, .blocks = blocks};
  Floats q = {1.0f, 1.0f};
  Floats k = {0.5f, -3.0f};
  Floats v = {7.0f, 9.0f};
  Floats out(2);

  WriteKv(*context, View(k, {1, 1, 2}), View(v, {1, 1, 2}), {&rows, 1}, pages);
  Attention(*context, View(q, {1, 1, 2}), pages, {&rows, 1}, 1.0f, View(out, {1, 1, 2}));

  EXPECT_EQ(out, v);
}

TEST(AttentionTest, EqualsTheDefinition) {
  const AttentionCase::Shape shapes[] = {
      {.length = 150},
      {.heads = 3, .kv_heads = 1, .head_dim = 10, .block_tokens = 7, .length = 131},
      {.heads = 2, .kv_heads = 2, .head_dim = 64, .block_tokens = 1, .length = 65},
      {.heads = 40, .kv_heads = 1, .head_dim = 8, .length = 70},
      {.dtype = DType::kBF16, .length = 150},
      {.heads = 4, .kv_heads = 4, .head_dim = 18, .dtype = DType::kBF16, .length = 64},
  };
  for (const AttentionCase::Shape& shape : shapes) {
    for (CpuIsa isa : Isas()) {
      AttentionCase attention(shape);
      const Floats out = attention.OnePass(*MakeContext(2, isa));
      for (size_t i = 0; i < out.size(); ++i) {
        const uint32_t dim = static_cast<uint32_t>(i % shape.head_dim);
        const uint32_t head = static_cast<uint32_t>(i / shape.head_dim % shape.heads);
        const uint32_t position = static_cast<uint32_t>(i / shape.head_dim / shape.heads);
        ASSERT_NEAR(out[i], attention.Expected(position, head, dim), 2e-6)
            << CpuIsaName(isa) << " position " << position << " head " << head << " dim " << dim;
      }
    }
  }
}

TEST(AttentionTest, BitsDependOnNeitherChunksNorBlocksNorThreadsNorIsa) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const AttentionCase::Shape shape = {
        .heads = 6, .kv_heads = 2, .head_dim = 20, .dtype = dtype, .length = 200};
    const Floats reference = AttentionCase(shape).OnePass(*MakeContext(1, CpuIsa::kBaseline));
    for (CpuIsa isa : Isas()) {
      for (uint32_t seed = 0; seed < 6; ++seed) {
        std::mt19937 random(seed);
        AttentionCase::Shape other = shape;
        const uint32_t block_sizes[] = {1, 4, 16, 32, 64, 100};
        other.block_tokens = block_sizes[seed];
        auto context = MakeContext(1 + seed % 4, isa);
        AttentionCase attention(other);
        Floats out;
        const uint32_t chunk_max = seed % 2 == 0 ? 3 : 120;
        for (uint32_t begin = 0; begin < shape.length;) {
          const uint32_t end = std::min<uint32_t>(
              shape.length, begin + 1 + static_cast<uint32_t>(random() % chunk_max));
          attention.Step(*context, begin, end, &out);
          begin = end;
        }
        EXPECT_TRUE(SameBits(out, reference)) << CpuIsaName(isa) << " seed " << seed;
      }
    }
  }
}

TEST(KernelContextTest, RefusesWhatItCannotDo) {
  EXPECT_EQ(KernelContext::Create({.device = DeviceKind::kCuda}).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(KernelContext::Create({.threads = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KernelContext::Create({.threads = 100000}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(KernelsDeathTest, WrongShapesStopTheProcess) {
  auto context = MakeContext();
  Floats x(6);
  Floats weight(8);
  Floats out(4);

  EXPECT_DEATH(
      Linear(*context, View(x, {2, 3}), View(weight, {2, 4}), ConstTensorView(), View(out, {2, 2})),
      "dim");
}

}  // namespace
}  // namespace baton
