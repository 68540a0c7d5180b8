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

TEST(KernelContextTest, RefusesWhatItCannotDo) {
  EXPECT_EQ(KernelContext::Create({.device = DeviceKind::kCuda}).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(KernelContext::Create({.threads = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KernelContext::Create({.threads = 100000}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton
