// Goal: a product with packed weights is what its definition says, bit by bit, whatever the rows,
// the threads and the instruction set; and quantized weights are near those that they stand for.
// Method: slow twins that do the documented operations in the documented order; error bounds
// derived from the rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "common/base/deterministic_math.h"
#include "common/kernels/testing/kernel_fixture.h"

namespace baton {
namespace {

constexpr WeightFormat kFormats[] = {
    {WeightForm::kF32},     {WeightForm::kBF16},    {WeightForm::kF16},
    {WeightForm::kInt8, 1}, {WeightForm::kInt8, 2}, {WeightForm::kInt4, 1},
    {WeightForm::kInt4, 2}, {WeightForm::kBF16, 2}, {WeightForm::kFp8}};

PackedWeight Pack(KernelContext& context, Device& device, const ConstTensorView& matrix,
                  WeightFormat format) {
  return PackWeight(context, device, matrix, format).value();
}

Floats Product(KernelContext& context, Floats& x, size_t m, const PackedWeight& weight,
               const ConstTensorView& bias = {}) {
  Floats out(m * weight.outputs());
  const LinearOutput outputs[] = {{&weight, bias, View(out, {m, weight.outputs()})}};
  Linear(context, View(x, {m, weight.inputs()}), outputs);
  return out;
}

// ---- Twins: the documented operations, one after the other
// ---------------------------------------

// Parts of kSumBlock elements, each a chain of fused multiply-adds.
float FloatTwin(const float* x, const float* weight, size_t k) {
  float total = 0.0f;
  for (size_t begin = 0; begin < k; begin += kSumBlock) {
    float sum = 0.0f;
    for (size_t i = begin; i < std::min(k, begin + kSumBlock); ++i) {
      sum = std::fma(x[i], weight[i], sum);
    }
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

// Numbers of one or two bytes, and the scale.
std::pair<std::vector<int32_t>, float> QuantizedRow(const float* x, size_t k, size_t byte_count) {
  const float highest_number = byte_count == 1 ? 127.0f : 127.0f * 256.0f + 127.0f;
  float highest = 0.0f;
  for (size_t i = 0; i < k; ++i) highest = std::max(highest, std::abs(x[i]));
  const float factor = highest > 0.0f ? highest_number / highest : 0.0f;
  std::vector<int32_t> numbers(k);
  for (size_t i = 0; i < k; ++i) {
    numbers[i] = static_cast<int32_t>(std::nearbyint(x[i] * factor));
  }
  return {numbers, highest / highest_number};
}

// A sum of products with one- or two-byte numbers, as floats: two sums joined.
float JoinedSum(const std::vector<int32_t>& x, const std::vector<int32_t>& w, size_t begin,
                size_t end, size_t byte_count, bool high) {
  int64_t sum = 0;
  for (size_t i = begin; i < end; ++i) {
    const int32_t first = byte_count == 1 ? x[i] : (x[i] + 128) >> 8;
    sum += int64_t{high ? first : x[i] - first * 256} * w[i];
  }
  return static_cast<float>(sum);
}

float Int8Twin(const float* x, const float* weight, size_t k, size_t byte_count) {
  float highest = 0.0f;
  for (size_t i = 0; i < k; ++i) highest = std::max(highest, std::abs(weight[i]));
  const float factor = highest > 0.0f ? 127.0f / highest : 0.0f;
  std::vector<int32_t> w(k);
  for (size_t i = 0; i < k; ++i) w[i] = static_cast<int32_t>(std::nearbyint(weight[i] * factor));
  const auto [numbers, scale] = QuantizedRow(x, k, byte_count);
  float sum = JoinedSum(numbers, w, 0, k, byte_count, true);
  if (byte_count == 2) sum = std::fma(sum, 256.0f, JoinedSum(numbers, w, 0, k, byte_count, false));
  return sum * (highest / 127.0f) * scale;
}

float Int4Twin(const float* x, const float* weight, size_t k, size_t byte_count) {
  const auto [numbers, x_scale] = QuantizedRow(x, k, byte_count);
  float high = 0.0f;
  float low = 0.0f;
  for (size_t begin = 0; begin < k; begin += kInt4Group) {
    const size_t end = std::min(k, begin + kInt4Group);
    float extreme = 0.0f;
    for (size_t i = begin; i < end; ++i) {
      if (std::abs(weight[i]) > std::abs(extreme)) extreme = weight[i];
    }
    const float scale = Bf16ToF32(F32ToBf16(extreme / -8.0f));
    std::vector<int32_t> w(k);
    for (size_t i = begin; i < end; ++i) {
      w[i] = std::clamp(static_cast<int32_t>(std::nearbyint(weight[i] / scale)), -8, 7);
    }
    high = std::fma(JoinedSum(numbers, w, begin, end, byte_count, true), scale, high);
    low = std::fma(JoinedSum(numbers, w, begin, end, byte_count, false), scale, low);
  }
  return (byte_count == 1 ? high : std::fma(high, 256.0f, low)) * x_scale;
}

float Fp8Twin(const float* x, const float* weight, size_t k) {
  float highest = 0.0f;
  for (size_t i = 0; i < k; ++i) highest = std::max(highest, std::abs(weight[i]));
  Floats numbers(k);
  for (size_t i = 0; i < k; ++i) numbers[i] = E4m3ToF32(F32ToE4m3(weight[i] * (448.0f / highest)));
  return FloatTwin(x, numbers.data(), k) * (highest / 448.0f);
}

// Products are exact; the odd element of each pair comes first.
float PairTwin(const float* x, const float* weight, size_t k) {
  const auto number = [k](const float* from, size_t i) {
    if (i >= k || std::abs(from[i]) < 0x1p-49f) return 0.0f;
    return Bf16ToF32(F32ToBf16(from[i]));
  };
  float total = 0.0f;
  for (size_t begin = 0; begin < k; begin += 512) {
    float sum = 0.0f;
    for (size_t i = begin; i < std::min(k, begin + 512); i += 2) {
      sum += number(x, i + 1) * number(weight, i + 1);
      sum += number(x, i) * number(weight, i);
    }
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

float Twin(const float* x, const float* weight, size_t k, const WeightFormat& format) {
  switch (format.form) {
    case WeightForm::kF32:
    case WeightForm::kBF16:
      return format.pairs() ? PairTwin(x, weight, k) : FloatTwin(x, weight, k);
    case WeightForm::kF16:
      return FloatTwin(x, weight, k);
    case WeightForm::kInt8:
      return Int8Twin(x, weight, k, format.ActivationBytes());
    case WeightForm::kInt4:
      return Int4Twin(x, weight, k, format.ActivationBytes());
    case WeightForm::kFp8:
      return Fp8Twin(x, weight, k);
  }
  return 0.0f;
}

DType StoredFor(WeightForm form) {
  return form == WeightForm::kBF16  ? DType::kBF16
         : form == WeightForm::kF16 ? DType::kF16
                                    : DType::kF32;
}

// ---- Tests
// ---------------------------------------------------------------------------------------

TEST(LinearTest, TwoByTwoByHand) {
  auto context = MakeContext();
  auto device = MakeHostDevice();
  Floats x = {1.0f, 2.0f, 3.0f, 4.0f};
  Floats weight = {5.0f, 6.0f, 7.0f, 8.0f};
  Floats bias = {0.5f, -0.5f};
  const PackedWeight packed = Pack(*context, *device, View(weight, {2, 2}), {WeightForm::kF32});

  EXPECT_EQ(Product(*context, x, 2, packed, View(bias, {2})), (Floats{17.5f, 22.5f, 39.5f, 52.5f}));
}

TEST(LinearTest, HasTheBitsOfTheDocumentedOperations) {
  auto device = MakeHostDevice();
  for (CpuIsa isa : Isas()) {
    auto context = MakeContext(1, isa);
    for (const WeightFormat& format : kFormats) {
      for (size_t k : {1, 3, 15, 32, 70, 600, 1100}) {
        for (size_t n : {1, 33, 64}) {
          const size_t m = 3;
          Floats x = Random(m * k, 1);
          const Matrix weight(Random(n * k, 2), StoredFor(format.form), n, k);
          const PackedWeight packed = Pack(*context, *device, weight.view, format);

          const Floats out = Product(*context, x, m, packed);

          for (size_t i = 0; i < m * n; ++i) {
            ASSERT_EQ(out[i], Twin(&x[i / n * k], &weight.values[i % n * k], k, format))
                << CpuIsaName(isa) << " " << format.name() << " k " << k << " n " << n << " at "
                << i;
          }
        }
      }
    }
  }
}

TEST(LinearTest, BitsDependOnNeitherRowsNorThreadsNorIsa) {
  const size_t m = 101;
  const size_t k = 700;
  const size_t n = 261;
  Floats x = Random(m * k, 6);
  Floats bias = Random(n, 7);
  auto device = MakeHostDevice();
  for (const WeightFormat& format : kFormats) {
    const Matrix weight(Random(n * k, 8), StoredFor(format.form), n, k);
    auto plain = MakeContext(1, CpuIsa::kBaseline);
    const PackedWeight packed = Pack(*plain, *device, weight.view, format);
    const Floats reference = Product(*plain, x, m, packed, View(bias, {n}));

    for (CpuIsa isa : Isas()) {
      for (uint32_t threads : {1u, 2u, 3u, 4u}) {
        auto context = MakeContext(threads, isa);
        for (size_t rows : {size_t{1}, size_t{2}, size_t{5}, size_t{48}, size_t{60}, m}) {
          Floats last(x.end() - static_cast<ptrdiff_t>(rows * k), x.end());
          const Floats out = Product(*context, last, rows, packed, View(bias, {n}));
          ASSERT_TRUE(SameBits(
              out, Floats(reference.end() - static_cast<ptrdiff_t>(rows * n), reference.end())))
              << CpuIsaName(isa) << " " << format.name() << " threads " << threads << " rows "
              << rows;
        }
      }
    }
  }
}

TEST(LinearTest, SeveralOutputsOfOneInputAreThoseOfSingleCalls) {
  const size_t m = 30;
  const size_t k = 96;
  auto device = MakeHostDevice();
  auto context = MakeContext(3);
  Floats x = Random(m * k, 9);
  std::vector<PackedWeight> weights;
  std::vector<Floats> outs;
  for (const WeightFormat& format : kFormats) {
    const size_t n = 20 + 30 * weights.size();
    Floats matrix = Random(n * k, 10);
    weights.push_back(Pack(*context, *device, View(matrix, {n, k}), format));
    outs.emplace_back(m * n);
  }
  std::vector<LinearOutput> outputs;
  for (size_t i = 0; i < weights.size(); ++i) {
    outputs.push_back({&weights[i], {}, View(outs[i], {m, weights[i].outputs()})});
  }

  Linear(*context, View(x, {m, k}), outputs);

  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_TRUE(SameBits(outs[i], Product(*context, x, m, weights[i]))) << i;
  }
}

// Groups of one row, of several, of none, with rows of no group between them.
TEST(LinearTest, GroupsAreThoseOfSingleCalls) {
  const size_t m = 60;
  const size_t k = 96;
  const size_t n = 70;
  const std::vector<std::pair<size_t, size_t>> ranges = {
      {1, 1}, {2, 25}, {30, 0}, {30, 3}, {40, 20}};
  auto device = MakeHostDevice();
  Floats x = Random(m * k, 18);
  for (const WeightFormat& format : kFormats) {
    std::vector<PackedWeight> weights;
    for (uint32_t i = 0; i < 2 * ranges.size(); ++i) {
      Floats matrix = Random(n * k, 19 + i);
      weights.push_back(Pack(*MakeContext(), *device, View(matrix, {n, k}), format));
    }
    for (uint32_t threads : {1u, 3u}) {
      auto context = MakeContext(threads);
      std::vector<Floats> outs;
      for (size_t i = 0; i < weights.size(); ++i) outs.emplace_back(ranges[i / 2].second * n);
      std::vector<LinearOutput> outputs;
      std::vector<LinearGroup> groups;
      for (size_t i = 0; i < weights.size(); ++i) {
        outputs.push_back({&weights[i], {}, View(outs[i], {ranges[i / 2].second, n})});
      }
      for (size_t i = 0; i < ranges.size(); ++i) {
        groups.push_back({.row = ranges[i].first,
                          .rows = ranges[i].second,
                          .outputs = std::span(outputs).subspan(2 * i, 2)});
      }

      GroupedLinear(*context, View(x, {m, k}), groups);

      for (size_t i = 0; i < weights.size(); ++i) {
        const auto [row, rows] = ranges[i / 2];
        if (rows == 0) continue;
        Floats part(x.begin() + static_cast<ptrdiff_t>(row * k),
                    x.begin() + static_cast<ptrdiff_t>((row + rows) * k));
        EXPECT_TRUE(SameBits(outs[i], Product(*context, part, rows, weights[i])))
            << format.name() << " threads " << threads << " output " << i;
      }
    }
  }
}

TEST(LinearTest, GroupsOfOneRowEachAreThoseOfSingleCalls) {
  const size_t m = 4;
  const size_t k = 50;
  const size_t n = 33;
  auto device = MakeHostDevice();
  auto context = MakeContext(2);
  Floats x = Random(m * k, 30);
  Floats out(m * n);
  std::vector<PackedWeight> weights;
  std::vector<LinearOutput> outputs;
  std::vector<LinearGroup> groups;
  for (uint32_t i = 0; i < m; ++i) {
    Floats matrix = Random(n * k, 31 + i);
    weights.push_back(Pack(*context, *device, View(matrix, {n, k}), {WeightForm::kF32}));
  }
  for (size_t i = 0; i < m; ++i) {
    outputs.push_back({&weights[i], {}, View(out, {m, n}).Rows(i, 1)});
  }
  for (size_t i = 0; i < m; ++i) groups.push_back({i, 1, std::span(outputs).subspan(i, 1)});

  GroupedLinear(*context, View(x, {m, k}), groups);

  for (size_t i = 0; i < m; ++i) {
    Floats row(x.begin() + static_cast<ptrdiff_t>(i * k),
               x.begin() + static_cast<ptrdiff_t>((i + 1) * k));
    EXPECT_TRUE(SameBits(Floats(out.begin() + static_cast<ptrdiff_t>(i * n),
                                out.begin() + static_cast<ptrdiff_t>((i + 1) * n)),
                         Product(*context, row, 1, weights[i])));
  }
}

// Rounding to b steps on each side of zero errs by half a step at most: over k products of weights
// and activations of one magnitude each the errors add up to less than this.
TEST(LinearTest, QuantizedWeightsStayWithinTheirRounding) {
  const size_t k = 256;
  const size_t n = 40;
  auto device = MakeHostDevice();
  auto context = MakeContext();
  Floats x = Random(k, 11);
  Floats weight = Random(n * k, 12);
  const double x_highest = std::abs(*std::max_element(
      x.begin(), x.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
  for (const WeightFormat& format : kFormats) {
    const bool fp8 = format.form == WeightForm::kFp8;
    if (!format.integers() && !fp8) continue;
    const Floats out =
        Product(*context, x, 1, Pack(*context, *device, View(weight, {n, k}), format));
    const double x_error = fp8 ? 0 : x_highest / (format.ActivationBytes() == 1 ? 127 : 32639) / 2;
    for (size_t c = 0; c < n; ++c) {
      double exact = 0.0;
      double bound = 1e-4;
      double highest = 0.0;
      for (size_t i = 0; i < k; ++i)
        highest = std::max<double>(highest, std::abs(weight[c * k + i]));
      // Four bits: half a step, or a whole one at the end that has no +8; and a scale of 8 bits.
      const double step =
          format.form == WeightForm::kInt8 ? highest / 127 / 2 : highest / 8 * (1 + 1.0 / 16);
      for (size_t i = 0; i < k; ++i) {
        // Three bits behind the first one, and half of the smallest number.
        const double w_error =
            fp8 ? std::abs(weight[c * k + i]) / 16 + highest / 448 * 0x1p-10 : step;
        exact += static_cast<double>(x[i]) * weight[c * k + i];
        bound += std::abs(x[i]) * w_error + (std::abs(weight[c * k + i]) + w_error) * x_error;
      }
      ASSERT_NEAR(out[c], exact, bound) << format.name();
    }
  }
}

TEST(LinearTest, ARowThatIsNotFiniteSpoilsOnlyItself) {
  const size_t k = 64;
  const size_t n = 8;
  auto device = MakeHostDevice();
  Floats x = Random(3 * k, 13);
  Floats weight = Random(n * k, 14);
  x[k + 5] = std::numeric_limits<float>::infinity();
  for (CpuIsa isa : Isas()) {
    auto context = MakeContext(1, isa);
    for (const WeightFormat& format : kFormats) {
      const PackedWeight packed = Pack(*context, *device, View(weight, {n, k}), format);
      const Floats out = Product(*context, x, 3, packed);
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(std::isfinite(out[i]), i / n != 1) << format.name() << " " << i;
      }
    }
  }
}

TEST(LinearTest, ARowOfZerosGivesZeros) {
  auto device = MakeHostDevice();
  auto context = MakeContext();
  Floats x(64);
  Floats weight = Random(8 * 64, 15);
  for (const WeightFormat& format : kFormats) {
    EXPECT_EQ(Product(*context, x, 1, Pack(*context, *device, View(weight, {8, 64}), format)),
              Floats(8));
  }
}

// A row whose largest number is below this one would be multiplied with an infinity.
TEST(LinearTest, ARowAsGoodAsZeroGivesZeros) {
  auto device = MakeHostDevice();
  auto context = MakeContext();
  Floats x = Random(64, 15);
  Floats least(64, 1e-38f);
  least[3] = 0.0f;
  Floats weight = Random(8 * 64, 15);
  for (const WeightFormat& format : kFormats) {
    if (!format.integers() && format.form != WeightForm::kFp8) continue;
    SCOPED_TRACE(format.name());
    const Floats of_weights =
        Product(*context, x, 1, Pack(*context, *device, View(least, {1, 64}), format));
    const Floats of_activations =
        Product(*context, least, 1, Pack(*context, *device, View(weight, {8, 64}), format));

    // A scale for each 32 inputs is rounded first, and keeps such numbers.
    if (format.form != WeightForm::kInt4) {
      EXPECT_EQ(of_weights, Floats(1));
    }
    if (format.integers()) {
      EXPECT_EQ(of_activations, Floats(8));
    }
  }
}

// Goal: integer sums do not overflow. Method: the largest numbers in the longest row that is taken.
TEST(PackWeightTest, TakesAsManyInputsAsIntegerSumsHaveRoomFor) {
  auto device = MakeHostDevice();
  auto context = MakeContext();
  Floats row(kInt8InputsMax + 1, 1.0f);

  for (const WeightFormat format : {WeightFormat{WeightForm::kInt8, 1}, {WeightForm::kInt8, 2}}) {
    const PackedWeight longest = Pack(*context, *device, View(row, {1, kInt8InputsMax}), format);
    EXPECT_NEAR(Product(*context, row, 1, longest)[0], kInt8InputsMax, 1.0);
    const auto longer = PackWeight(*context, *device, View(row, {1, row.size()}), format);
    EXPECT_TRUE(absl::IsInvalidArgument(longer.status()));
    EXPECT_EQ(longer.status().message(),
              "has 131072 inputs; int8 sums of a CPU have room for 131071");
  }
  EXPECT_TRUE(PackWeight(*context, *device, View(row, {1, row.size()}), {WeightForm::kInt4}).ok());
}

TEST(PackWeightTest, NamesTheNumberThatDoesNotFit) {
  auto device = MakeHostDevice();
  auto context = MakeContext(2);
  Floats weight(200 * 3, 1.0f);
  weight[400] = 1e9f;

  const absl::Status half =
      PackWeight(*context, *device, View(weight, {200, 3}), {WeightForm::kF16}).status();
  EXPECT_EQ(half.message(), "has 1e+09, which does not fit into f16");
  EXPECT_TRUE(PackWeight(*context, *device, View(weight, {200, 3}), {WeightForm::kInt8}).ok());

  weight[400] = std::numeric_limits<float>::infinity();
  const absl::Status int4 =
      PackWeight(*context, *device, View(weight, {200, 3}), {WeightForm::kInt4}).status();
  EXPECT_EQ(int4.message(), "has inf, which does not fit into int4");
}

TEST(PackWeightTest, NamesActivationsThatDoNotGoWithTheForm) {
  auto context = MakeContext();
  auto device = MakeHostDevice();
  Floats matrix(4, 1.0f);
  const auto message = [&](const WeightFormat& format) {
    return std::string(
        PackWeight(*context, *device, View(matrix, {2, 2}), format).status().message());
  };

  EXPECT_EQ(message({WeightForm::kF32, 2}),
            "activations of 16 bits do not go with f32 weights; choose 32");
  EXPECT_EQ(message({WeightForm::kBF16, 1}),
            "activations of 8 bits do not go with bf16 weights; choose 16 or 32");
  EXPECT_EQ(message({WeightForm::kInt4, 4}),
            "activations of 32 bits do not go with int4 weights; choose 8 or 16");
}

TEST(PackWeightTest, ReadsUnalignedMatrices) {
  auto device = MakeHostDevice();
  auto context = MakeContext();
  Floats weight = Random(8 * 16, 16);
  std::vector<std::byte> shifted(weight.size() * sizeof(float) + 1);
  std::memcpy(shifted.data() + 1, weight.data(), weight.size() * sizeof(float));
  const ConstTensorView view(shifted.data() + 1, DType::kF32, DeviceKind::kCpu, {8, 16});
  Floats x = Random(16, 17);

  EXPECT_EQ(
      Product(*context, x, 1, Pack(*context, *device, view, {WeightForm::kF32})),
      Product(*context, x, 1, Pack(*context, *device, View(weight, {8, 16}), {WeightForm::kF32})));
}

TEST(LinearDeathTest, WrongShapesStopTheProcess) {
  auto device = MakeHostDevice();
  auto context = MakeContext();
  Floats x(6);
  Floats weight(8);
  const PackedWeight packed = Pack(*context, *device, View(weight, {2, 4}), {WeightForm::kF32});
  Floats out(4);
  const LinearOutput outputs[] = {{&packed, {}, View(out, {2, 2})}};

  EXPECT_DEATH(Linear(*context, View(x, {2, 3}), outputs), "inputs");
}

}  // namespace
}  // namespace baton
