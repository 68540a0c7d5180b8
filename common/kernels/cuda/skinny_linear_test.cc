#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/tensor/dtype.h"
#include "common/tensor/number_formats.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kRowsMax = 64;

// Uniform in [-1, 1), as they are in `type`.
std::vector<float> RandomNumbers(size_t count, DType type, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return Decode(Encode(values, type), type);
}

// One of the products of a launch: the weight as it is in memory, and as numbers before scaling.
struct Product {
  // `bias_type`: absent without a bias.
  Product(uint32_t outputs_in, uint32_t inputs, DType type, std::optional<DType> bias_type,
          std::mt19937& random)
      : outputs(outputs_in) {
    const size_t count = size_t{outputs} * inputs;
    if (HasScales(type)) {
      std::uniform_int_distribution<int> bytes(-128, 127);
      std::vector<std::byte> encoded(count);
      for (std::byte& byte : encoded) byte = static_cast<std::byte>(bytes(random));
      encoded[0] = std::byte{0x80};
      encoded[1] = std::byte{0x7f};
      for (std::byte& byte : encoded) {
        // These are no numbers, and nobody stores them.
        if (type == DType::kFp8 && (byte | std::byte{0x80}) == std::byte{0xff})
          byte ^= std::byte{1};
        numbers.push_back(type == DType::kFp8 ? E4m3ToF32(std::to_integer<uint8_t>(byte))
                                              : std::to_integer<int8_t>(byte));
      }
      weight = std::make_unique<DeviceArray<std::byte>>(encoded);
      scales = RandomNumbers(outputs, DType::kF32, random);
      device_scales = std::make_unique<DeviceArray<float>>(scales);
    } else {
      numbers = RandomNumbers(count, type, random);
      weight = std::make_unique<DeviceArray<std::byte>>(Encode(numbers, type));
      scales.assign(outputs, 1.0f);
    }
    bias.assign(outputs, 0.0f);
    if (!bias_type.has_value()) return;
    bias = RandomNumbers(outputs, *bias_type, random);
    device_bias = std::make_unique<DeviceArray<std::byte>>(Encode(bias, *bias_type));
  }

  SkinnyOutput Output(void* out) const {
    return {.weight = weight->data(),
            .scales = device_scales == nullptr ? nullptr : device_scales->data(),
            .bias = device_bias == nullptr ? nullptr : device_bias->data(),
            .out = out,
            .outputs = outputs};
  }

  uint32_t outputs;
  std::vector<float> numbers;
  std::vector<float> scales;
  std::vector<float> bias;
  std::unique_ptr<DeviceArray<std::byte>> weight;
  std::unique_ptr<DeviceArray<float>> device_scales;
  std::unique_ptr<DeviceArray<std::byte>> device_bias;
};

struct Case {
  DType x_type;
  DType weight_type;
  DType out_type;
  uint32_t inputs;
  std::vector<uint32_t> outputs;
  bool has_bias;
};

class SkinnyLinearCase {
 public:
  explicit SkinnyLinearCase(const Case& c) : case_(c), random_(c.inputs + c.outputs.size()) {
    x_ = RandomNumbers(size_t{kRowsMax} * c.inputs, c.x_type, random_);
    for (const uint32_t outputs : c.outputs) {
      const auto bias_type = c.has_bias ? std::optional(c.out_type) : std::nullopt;
      products_.emplace_back(outputs, c.inputs, c.weight_type, bias_type, random_);
    }
  }

  // What the first `rows` rows of x become, by product.
  std::vector<std::vector<std::byte>> Run(uint32_t rows) const {
    const std::vector<float> x(x_.begin(), x_.begin() + size_t{rows} * case_.inputs);
    const DeviceArray<std::byte> device_x(Encode(x, case_.x_type));
    std::vector<std::unique_ptr<DeviceArray<std::byte>>> outs;
    std::vector<SkinnyOutput> outputs;
    for (const Product& product : products_) {
      outs.push_back(std::make_unique<DeviceArray<std::byte>>(size_t{rows} * product.outputs *
                                                              DTypeBytes(case_.out_type)));
      outputs.push_back(product.Output(outs.back()->data()));
    }
    EXPECT_TRUE(SkinnyLinearFits(case_.x_type, case_.weight_type, rows, case_.inputs));
    EXPECT_EQ(
        SkinnyLinear(*Gpu(), device_x.data(), case_.x_type, rows, case_.inputs, case_.weight_type,
                     outputs.data(), static_cast<uint32_t>(outputs.size()), case_.out_type),
        cudaSuccess);
    std::vector<std::vector<std::byte>> results;
    for (const auto& out : outs) results.push_back(out->Read());
    return results;
  }

  void ExpectNear(const std::vector<std::vector<std::byte>>& results) const {
    for (size_t p = 0; p < products_.size(); ++p) {
      const std::vector<float> out = Decode(results[p], case_.out_type);
      ASSERT_EQ(out.size() % products_[p].outputs, 0u);
      EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float v) { return std::isfinite(v); }));
      // Of very many, those that an odd distance apart meets: of every row and place in a tile.
      const size_t distance = out.size() / 30000 | 1;
      int failures = 0;
      for (size_t i = 0; i < out.size() && failures < 10; i += distance) {
        if (!IsNear(products_[p], i, out[i])) ++failures;
      }
      EXPECT_EQ(failures, 0) << "product " << p;
    }
  }

 private:
  // An instruction adds 16 products to a sum and cuts each of the 17 terms off at 24 bits below the
  // largest, so it errs by less than 17 * 2^-24 < 2^-19 of the magnitudes' sum; there are inputs /
  // 128 of them to one of eight sums, and a few additions more. Then out is rounded: by 2^-9 of
  // itself in bfloat16, by 2^-12 in float16, where twice as much is allowed.
  bool IsNear(const Product& product, size_t place, float value) const {
    const size_t row = place / product.outputs, o = place % product.outputs;
    const float* x = &x_[row * case_.inputs];
    const float* weight = &product.numbers[o * case_.inputs];
    double sum = 0.0, magnitude = 0.0;
    for (uint32_t k = 0; k < case_.inputs; ++k) {
      const double term = double{x[k]} * double{weight[k]};
      sum += term;
      magnitude += std::abs(term);
    }
    const double expected = sum * double{product.scales[o]} + double{product.bias[o]};
    magnitude = magnitude * std::abs(double{product.scales[o]}) + std::abs(double{product.bias[o]});
    const double rounding = case_.out_type == DType::kBF16  ? 0x1p-8
                            : case_.out_type == DType::kF16 ? 0x1p-11
                                                            : 0x1p-23;
    const double bound =
        (case_.inputs / 128 + 8) * 0x1p-19 * magnitude + rounding * std::abs(expected);
    const bool near = std::abs(double{value} - expected) <= bound;  // Not of a NaN.
    EXPECT_TRUE(near) << "row " << row << ", output " << o << ": " << value << ", not " << expected
                      << " within " << bound;
    return near;
  }

  Case case_;
  std::mt19937 random_;
  std::vector<float> x_;
  std::vector<Product> products_;
};

// Near the reference for 64 rows, and the same bits for fewer.
void Check(const Case& c) {
  SCOPED_TRACE(testing::Message() << "x " << static_cast<int>(c.x_type) << ", weight "
                                  << static_cast<int>(c.weight_type) << ", out "
                                  << static_cast<int>(c.out_type) << ", inputs " << c.inputs);
  const SkinnyLinearCase run(c);
  const std::vector<std::vector<std::byte>> all = run.Run(kRowsMax);
  run.ExpectNear(all);
  for (const uint32_t rows : {1u, 3u, 8u, 9u, 16u, 17u, 32u, 33u}) {
    const std::vector<std::vector<std::byte>> some = run.Run(rows);
    for (size_t p = 0; p < all.size(); ++p) {
      ASSERT_LT(some[p].size(), all[p].size());
      EXPECT_TRUE(std::equal(some[p].begin(), some[p].end(), all[p].begin()))
          << rows << " rows, product " << p;
    }
  }
}

void CheckTypes(uint32_t inputs, const std::vector<uint32_t>& outputs) {
  bool has_bias = false;
  for (const DType x_type : {DType::kBF16, DType::kF16}) {
    for (const DType weight_type : {x_type, DType::kI8, DType::kFp8}) {
      // Float16 cannot hold what such numbers add up to.
      const bool wide = HasScales(weight_type) && x_type == DType::kF16 && inputs > 1024;
      for (const DType out_type : {wide ? DType::kF32 : x_type, DType::kF32}) {
        Check({x_type, weight_type, out_type, inputs, outputs, has_bias});
        has_bias = !has_bias;
      }
      has_bias = !has_bias;  // Both types of out have it and do without it.
    }
  }
}

TEST(SkinnyLinear, OneStepOfTheWeights) {
  SKIP_WITHOUT_GPU();
  for (const DType x_type : {DType::kBF16, DType::kF16}) {
    Check({x_type, x_type, x_type, 64, {40, 1}, false});
    Check({x_type, DType::kI8, DType::kF32, 128, {40, 1}, true});
    Check({x_type, DType::kFp8, DType::kF32, 128, {40, 1}, true});
  }
}

TEST(SkinnyLinear, FewInputs) {
  SKIP_WITHOUT_GPU();
  CheckTypes(128, {1, 40, 1024, 17});
}

TEST(SkinnyLinear, InputsThatDoNotFillEverySlice) {
  SKIP_WITHOUT_GPU();
  CheckTypes(896, {128, 1, 300});
}

TEST(SkinnyLinear, ManyInputs) {
  SKIP_WITHOUT_GPU();
  CheckTypes(4096, {40, 129, 1});
}

TEST(SkinnyLinear, MoreInputsThanTheCacheHasRoomForEvenOfFewRows) {
  SKIP_WITHOUT_GPU();
  CheckTypes(14336, {20, 7});
}

TEST(SkinnyLinear, ManyOutputs) {
  SKIP_WITHOUT_GPU();
  Check({DType::kBF16, DType::kBF16, DType::kF32, 64, {20000}, false});
  Check({DType::kBF16, DType::kBF16, DType::kF32, 4160, {4096, 1000}, false});
}

TEST(SkinnyLinear, AnElementThatIsNotFiniteStaysInItsRow) {
  SKIP_WITHOUT_GPU();
  constexpr uint32_t kInputs = 4096, kOutputs = 40, kRows = 20;
  std::mt19937 random(1);
  const Product product(kOutputs, kInputs, DType::kBF16, /*bias_type=*/{}, random);
  std::vector<float> x = RandomNumbers(size_t{kRows} * kInputs, DType::kBF16, random);
  x[5 * kInputs + 77] = INFINITY;
  const DeviceArray<std::byte> device_x(Encode(x, DType::kBF16));
  const DeviceArray<float> out(size_t{kRows} * kOutputs);
  const SkinnyOutput output = product.Output(out.data());
  ASSERT_CUDA(SkinnyLinear(*Gpu(), device_x.data(), DType::kBF16, kRows, kInputs, DType::kBF16,
                           &output, 1, DType::kF32));
  const std::vector<float> values = out.Read();
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::isfinite(values[i]), i / kOutputs != 5) << i;
  }
}

TEST(SkinnyLinear, NothingToDoIsNoError) {
  SKIP_WITHOUT_GPU();
  const DeviceArray<std::byte> data(64);
  const SkinnyOutput none = {.weight = data.data(), .out = data.data(), .outputs = 0};
  ASSERT_CUDA(
      SkinnyLinear(*Gpu(), data.data(), DType::kF16, 1, 64, DType::kF16, &none, 1, DType::kF16));
  const SkinnyOutput one = {.weight = data.data(), .out = data.data(), .outputs = 1};
  ASSERT_CUDA(
      SkinnyLinear(*Gpu(), data.data(), DType::kF16, 0, 64, DType::kF16, &one, 1, DType::kF16));
  EXPECT_EQ(data.Read()[0], std::byte{0xff});
}

TEST(SkinnyLinear, FitsWhatItCanDo) {
  EXPECT_TRUE(SkinnyLinearFits(DType::kBF16, DType::kBF16, 64, 192));
  EXPECT_TRUE(SkinnyLinearFits(DType::kF16, DType::kI8, 1, 128));
  EXPECT_TRUE(SkinnyLinearFits(DType::kBF16, DType::kFp8, 1, 128));
  EXPECT_FALSE(SkinnyLinearFits(DType::kBF16, DType::kBF16, 65, 192));
  EXPECT_FALSE(SkinnyLinearFits(DType::kBF16, DType::kBF16, 1, 96));
  EXPECT_FALSE(SkinnyLinearFits(DType::kBF16, DType::kI8, 1, 192));
  EXPECT_FALSE(SkinnyLinearFits(DType::kBF16, DType::kF16, 1, 64));
  EXPECT_FALSE(SkinnyLinearFits(DType::kF32, DType::kF32, 1, 64));
}

// The product of a byte and a scale, rounded once to float32 and once to the type.
TEST(Dequantize, IsExact) {
  SKIP_WITHOUT_GPU();
  constexpr uint32_t kOutputs = 37;
  std::mt19937 random(2);
  for (const DType weight_type : {DType::kI8, DType::kFp8}) {
    for (const uint32_t inputs : {5u, 16u, 300u, 4112u}) {
      const Product product(kOutputs, inputs, weight_type, /*bias_type=*/{}, random);
      std::vector<float> expected(product.numbers.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        expected[i] = product.numbers[i] * product.scales[i / inputs];
      }
      for (const DType type : {DType::kBF16, DType::kF16}) {
        const DeviceArray<std::byte> out(expected.size() * DTypeBytes(type));
        const SkinnyOutput source = product.Output(nullptr);
        ASSERT_CUDA(Dequantize(*Gpu(), static_cast<const std::byte*>(source.weight), weight_type,
                               source.scales, kOutputs, inputs, out.data(), type));
        EXPECT_TRUE(out.Read() == Encode(expected, type)) << DTypeName(weight_type) << inputs;
      }
    }
  }
}

}  // namespace
}  // namespace baton::cuda
