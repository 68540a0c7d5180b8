// Goal: each CPU kernel that works row by row computes what its definition says, and the same bits
// for every thread count and instruction set. Method: hand-computed cases; slow, obvious twins in
// double precision; comparisons of bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/base/deterministic_math.h"
#include "common/kernels/testing/kernel_fixture.h"

namespace baton {
namespace {

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

TEST(LayerNormTest, ByHand) {
  auto context = MakeContext();
  Floats x = {1.0f, 3.0f};
  Floats weight = {2.0f, 5.0f};
  Floats bias = {0.5f, -1.0f};
  Floats out(2);

  LayerNorm(*context, View(x, {1, 2}), View(weight, {2}), View(bias, {2}), 0.0f, View(out, {1, 2}));

  EXPECT_EQ(out, (Floats{-1.5f, 4.0f}));
}

TEST(LayerNormTest, EqualsTwinInEveryIsaAndInPlace) {
  const size_t rows = 5;
  for (size_t n : {1, 7, 16, 77, 160}) {
    Floats x = Random(rows * n, 23);
    for (float& value : x) value += 3.0f;  // A mean far from zero.
    Floats weight = Random(n, 24);
    Floats bias = Random(n, 25);
    Floats reference(rows * n);
    LayerNorm(*MakeContext(1, CpuIsa::kBaseline), View(x, {rows, n}), View(weight, {n}),
              View(bias, {n}), 1e-5f, View(reference, {rows, n}));

    for (size_t i = 0; i < rows * n; ++i) {
      const float* row = &x[i / n * n];
      double mean = 0.0;
      for (size_t j = 0; j < n; ++j) mean += row[j];
      mean /= static_cast<double>(n);
      double variance = 0.0;
      for (size_t j = 0; j < n; ++j) variance += std::pow(row[j] - mean, 2);
      variance /= static_cast<double>(n);
      const double expected =
          (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i % n] + bias[i % n];
      // The mean is rounded: its error counts as many times as the row's deviation is small.
      ASSERT_NEAR(reference[i], expected, 4e-6 * (1 + std::abs(weight[i % n])));
    }
    for (CpuIsa isa : Isas()) {
      Floats in_place = x;
      LayerNorm(*MakeContext(2, isa), View(in_place, {rows, n}), View(weight, {n}), View(bias, {n}),
                1e-5f, View(in_place, {rows, n}));
      EXPECT_TRUE(SameBits(in_place, reference)) << CpuIsaName(isa) << " " << n;
    }
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

TEST(RopeTest, LeavesTheRestOfAHead) {
  auto context = MakeContext();
  Floats cosines = {0.0f};
  Floats sines = {1.0f};
  Floats x = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f, 7.0f, 8.0f};  // Two heads.

  Rope(*context, View(cosines, {1, 1}), View(sines, {1, 1}), View(x, {1, 2, 4}));

  EXPECT_EQ(x, (Floats{-2.0f, 1.0f, 3.0f, 4.0f, -6.0f, 5.0f, 7.0f, 8.0f}));
}

TEST(EmbeddingTest, ReadsEveryWeightType) {
  auto context = MakeContext();
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
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

TEST(JoinColumnsTest, PutsPartsSideBySide) {
  Floats wide = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  Floats none(1);
  Floats narrow = {7.0f, 8.0f};
  Floats joined(8);
  const ConstTensorView parts[] = {View(wide, {2, 3}), View(none, {2, 0}), View(narrow, {2, 1})};

  JoinColumns(*MakeContext(), parts, View(joined, {2, 4}));

  EXPECT_EQ(joined, (Floats{1.0f, 2.0f, 3.0f, 7.0f, 4.0f, 5.0f, 6.0f, 8.0f}));
}

TEST(CombineRowsTest, AddsRowsInTheirOrderWithEqualBits) {
  const size_t n = 37;
  Floats x = Random(5 * n, 21);
  const std::vector<uint32_t> rows = {4, 0, 2, 1, 1, 3};
  const std::vector<float> weights = {0.3f, -1.7f, 0.25f, 1e-3f, 2.0f, 0.7f};
  Floats expected(2 * n);
  for (size_t token = 0; token < 2; ++token) {
    for (size_t term = token * 3; term < token * 3 + 3; ++term) {
      for (size_t d = 0; d < n; ++d) {
        float& sum = expected[token * n + d];
        sum = std::fma(x[rows[term] * n + d], weights[term], sum);
      }
    }
  }

  for (CpuIsa isa : Isas()) {
    Floats out(2 * n, 9.0f);
    CombineRows(*MakeContext(2, isa), View(x, {5, n}), rows, weights, View(out, {2, n}));
    EXPECT_TRUE(SameBits(out, expected)) << CpuIsaName(isa);
  }
}

TEST(RouteExpertsTest, TakesTheHighestAndOfEqualsTheFirst) {
  auto context = MakeContext();
  const float log2 = std::log(2.0f);
  Floats logits = {0.0f, log2, 0.0f, log2, 0.0f,     // 1/7, 2/7, 1/7, 2/7, 1/7
                   log2, 0.0f, 0.0f, 0.0f, -1e30f};  // 2/5, 1/5, 1/5, 1/5, 0
  std::vector<uint32_t> experts(6);
  std::vector<float> weights(6);

  RouteExperts(*context, View(logits, {2, 5}), 3, false, experts, weights);

  EXPECT_EQ(experts, (std::vector<uint32_t>{0, 1, 3, 0, 1, 2}));
  const double expected[] = {1.0 / 7, 2.0 / 7, 2.0 / 7, 0.4, 0.2, 0.2};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(weights[i], expected[i], 1e-6);

  RouteExperts(*context, View(logits, {2, 5}), 3, true, experts, weights);
  const double normalized[] = {0.2, 0.4, 0.4, 0.5, 0.25, 0.25};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(weights[i], normalized[i], 1e-6);
}

TEST(RouteExpertsTest, EqualsItsTwinForEveryThreadCount) {
  const size_t tokens = 700;
  const size_t count = 60;
  const uint32_t per_token = 8;
  Floats logits = Random(tokens * count, 22, 2.0f);
  std::vector<uint32_t> reference;
  std::vector<float> reference_weights;
  for (uint32_t threads : {1u, 3u}) {
    std::vector<uint32_t> experts(tokens * per_token);
    std::vector<float> weights(tokens * per_token);

    RouteExperts(*MakeContext(threads), View(logits, {tokens, count}), per_token, true, experts,
                 weights);

    if (threads == 1) {
      reference = experts;
      reference_weights = weights;
    }
    EXPECT_EQ(experts, reference);
    EXPECT_EQ(weights, reference_weights);
  }
  for (size_t token = 0; token < tokens; ++token) {
    const float* row = &logits[token * count];
    std::vector<uint32_t> order(count);
    for (uint32_t i = 0; i < count; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [row](uint32_t a, uint32_t b) { return row[a] > row[b]; });
    order.resize(per_token);
    std::sort(order.begin(), order.end());
    double sum = 0.0;
    for (uint32_t expert : order) sum += std::exp(static_cast<double>(row[expert]));
    for (size_t i = 0; i < per_token; ++i) {
      ASSERT_EQ(reference[token * per_token + i], order[i]);
      ASSERT_NEAR(reference_weights[token * per_token + i], std::exp(row[order[i]]) / sum, 1e-6);
    }
  }
}

TEST(RouteExpertsTest, WhatIsNotANumberStillChoosesDifferentExperts) {
  Floats logits(4, std::numeric_limits<float>::quiet_NaN());
  std::vector<uint32_t> experts(3);
  std::vector<float> weights(3);

  RouteExperts(*MakeContext(), View(logits, {1, 4}), 3, true, experts, weights);

  EXPECT_EQ(experts, (std::vector<uint32_t>{0, 1, 2}));
  EXPECT_TRUE(std::isnan(weights[0]));
}

// Element by element, so that the vectors' tails and bodies are compared too.
TEST(ElementwiseTest, GeluIsItsTanhFormWithEqualBitsInEveryIsa) {
  const size_t n = 1203;
  Floats x(n);
  for (size_t i = 0; i < n; ++i) x[i] = (static_cast<float>(i) - 600.0f) / 50.0f;
  x[0] = -1e20f;  // Cubes that overflow.
  x[n - 1] = 1e20f;
  Floats up = Random(n, 16);
  Floats single(n);
  for (size_t i = 0; i < n; ++i) FindCpuOps(CpuIsa::kBaseline)->gelu(&x[i], 1, &single[i]);

  for (size_t i = 0; i < n; ++i) {
    const double value = x[i];
    const double u = std::sqrt(2.0 / std::acos(-1.0)) * (value + 0.044715 * std::pow(value, 3));
    const double expected = 0.5 * value * (1.0 + std::tanh(u));
    ASSERT_NEAR(single[i], expected, 1e-6 * std::max(1.0, std::abs(expected))) << value;
  }
  for (CpuIsa isa : Isas()) {
    auto context = MakeContext(2, isa);
    Floats plain = x;
    Floats gated = x;
    Gelu(*context, View(plain, {1, n}), View(plain, {1, n}));
    GeluMul(*context, View(gated, {1, n}), View(up, {1, n}), View(gated, {1, n}));
    EXPECT_TRUE(SameBits(plain, single)) << CpuIsaName(isa);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(gated[i], single[i] * up[i]) << CpuIsaName(isa);
  }
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

TEST(TanhTest, VectorTwinHasTheBitsOfTheScalarOne) {
  Floats x;
  for (float value = -50.0f; value < 50.0f; value += 0.01f) x.push_back(value);
  const float infinity = std::numeric_limits<float>::infinity();
  for (float value : {0.0f, -0.0f, 0.625f, -0.625f, 1e-30f, infinity, -infinity}) {
    x.push_back(value);
  }

  for (CpuIsa isa : Isas()) {
    Floats out(x.size());
    FindCpuOps(isa)->tanh(x.data(), x.size(), out.data());
    Floats expected;
    for (float value : x) expected.push_back(StableTanh(value));
    EXPECT_TRUE(SameBits(out, expected)) << CpuIsaName(isa);
  }
}

TEST(ElementwiseTest, SoftCapAndScale) {
  const Floats before = Random(1203, 17, 40.0f);
  for (CpuIsa isa : Isas()) {
    auto context = MakeContext(2, isa);
    Floats capped = before;
    Floats scaled = before;
    SoftCap(*context, 30.0f, View(capped, {3, 401}));
    Scale(*context, 1.5f, View(scaled, {3, 401}));
    for (size_t i = 0; i < before.size(); ++i) {
      ASSERT_EQ(capped[i], StableTanh(before[i] / 30.0f) * 30.0f) << CpuIsaName(isa);
      ASSERT_EQ(scaled[i], before[i] * 1.5f) << CpuIsaName(isa);
    }
  }
}

TEST(RotaryAnglesTest, AreTheRotationsOfThePositions) {
  const uint32_t positions[] = {1, 77, 4095, 1000000};
  Floats frequencies = {1.0f, 0.1f, 0.01f, 0.001f};
  Floats cosines(16);
  Floats sines(16);
  std::vector<SequenceRows> rows;
  for (uint32_t row = 0; row < 4; ++row) {
    rows.push_back({.row = row, .count = 1, .position = positions[row], .blocks = {}});
  }

  RotaryAngles(*MakeContext(2), std::span<const SequenceRows>(rows), View(frequencies, {4}), 2.0f,
               View(cosines, {4, 4}), View(sines, {4, 4}));

  for (size_t i = 0; i < 16; ++i) {
    const float angle = static_cast<float>(positions[i / 4]) * frequencies[i % 4];
    EXPECT_NEAR(cosines[i], 2.0 * std::cos(static_cast<double>(angle)), 2e-7);
    EXPECT_NEAR(sines[i], 2.0 * std::sin(static_cast<double>(angle)), 2e-7);
  }
}

class DeviceWithoutKernels final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string name() const override { return "cuda:0 of no kernels"; }
  absl::StatusOr<DeviceMemory> Allocate(size_t) override { return absl::UnimplementedError(""); }
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t) override {
    return absl::UnimplementedError("");
  }
  absl::Status CopyFromHost(std::byte*, const std::byte*, size_t) override {
    return absl::UnimplementedError("");
  }
  absl::Status CopyToHost(std::byte*, const std::byte*, size_t) override {
    return absl::UnimplementedError("");
  }

  absl::Status Gather(std::byte*, std::span<const std::span<const std::byte>>) override {
    return absl::UnimplementedError("");
  }
  absl::Status Scatter(std::span<const std::span<std::byte>>, const std::byte*) override {
    return absl::UnimplementedError("");
  }

 private:
  void Free(std::byte*, size_t, bool) override {}
};

TEST(KernelContextTest, RefusesWhatItCannotDo) {
  DeviceWithoutKernels device;
  EXPECT_EQ(KernelContext::Create({.device = &device}).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(KernelContext::Create({.threads = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KernelContext::Create({.threads = 100000}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton
