// Goal: the GPU sends tokens to the experts that a slow search on the host finds, and the products
// of all experts at once are those of one after the other. Method: tables of RouteTokens with ==
// (and weights to a few roundings) for random, equal, infinite and missing logits; RoutedLinear
// with == against SkinnyLinear, which has its own test, on the rows of each expert.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/tensor/dtype.h"

namespace baton::cuda {
namespace {

using Floats = std::vector<float>;

struct Case {
  uint32_t tokens;
  uint32_t experts;
  uint32_t per_token;
  bool shared = false;
  bool normalize = false;
  std::vector<uint32_t> idle = {};  // Tokens of no sequence.
};

RoutingShape ShapeOf(const Case& c) {
  return {.tokens = c.tokens,
          .experts = c.experts,
          .per_token = c.per_token,
          .terms = c.per_token + (c.shared ? 1 : 0)};
}

std::vector<uint32_t> RowSequence(const Case& c) {
  std::vector<uint32_t> sequences;
  for (uint32_t i = 0; i < c.tokens; ++i) sequences.push_back(i);
  for (uint32_t token : c.idle) sequences[token] = kNoSequence;
  return sequences;
}

struct Tables {
  std::vector<RoutedGroup> groups;
  std::vector<uint32_t> row_tokens;
  std::vector<uint32_t> term_rows;
  Floats term_weights;
};

// In device memory.
struct DeviceTables {
  explicit DeviceTables(const Case& c)
      : groups(RoutedGroupsMax(ShapeOf(c))),
        row_tokens(c.tokens * c.per_token),
        term_rows(c.tokens * ShapeOf(c).terms),
        term_weights(c.tokens * ShapeOf(c).terms) {}

  RoutingTables Get() const {
    return {groups.data(), row_tokens.data(), term_rows.data(), term_weights.data()};
  }
  Tables Read() const {
    return {groups.Read(), row_tokens.Read(), term_rows.Read(), term_weights.Read()};
  }

  DeviceArray<RoutedGroup> groups;
  DeviceArray<uint32_t> row_tokens;
  DeviceArray<uint32_t> term_rows;
  DeviceArray<float> term_weights;
};

// The twin. Experts by logit, of equal ones the first; what is not a number counts as -infinity.
Tables RouteSlowly(const Case& c, const Floats& logits, const Floats& shared_logits) {
  const RoutingShape shape = ShapeOf(c);
  const std::vector<uint32_t> sequences = RowSequence(c);
  std::vector<std::vector<uint32_t>> tokens_of(c.experts);
  Tables tables = {.groups = {},
                   .row_tokens = {},
                   .term_rows = std::vector<uint32_t>(c.tokens * shape.terms, 0),
                   .term_weights = Floats(c.tokens * shape.terms, 0.0f)};
  for (uint32_t token = 0; token < c.tokens; ++token) {
    if (sequences[token] == kNoSequence) continue;
    const float* const from = &logits[size_t{token} * c.experts];
    std::vector<uint32_t> order(c.experts);
    for (uint32_t i = 0; i < c.experts; ++i) order[i] = i;
    const auto key = [&](uint32_t i) { return std::isnan(from[i]) ? -INFINITY : from[i]; };
    std::ranges::stable_sort(order, [&](uint32_t a, uint32_t b) { return key(a) > key(b); });
    std::vector<uint32_t> chosen(order.begin(), order.begin() + c.per_token);
    std::ranges::sort(chosen);
    double all = 0.0;
    for (uint32_t i = 0; i < c.experts; ++i) all += std::exp(double{from[i]} - key(order[0]));
    double sum = 0.0;
    for (uint32_t expert : chosen) sum += std::exp(double{from[expert]} - key(order[0]));
    for (uint32_t i = 0; i < c.per_token; ++i) {
      const double weight = std::exp(double{from[chosen[i]]} - key(order[0]));
      tables.term_weights[token * shape.terms + i] =
          static_cast<float>(weight / (c.normalize ? sum : all));
      tokens_of[chosen[i]].push_back(token);
    }
    if (!c.shared) continue;
    const uint32_t term = token * shape.terms + c.per_token;
    tables.term_rows[term] = c.tokens * c.per_token + token;
    tables.term_weights[term] =
        static_cast<float>(1.0 / (1.0 + std::exp(-double{shared_logits[token]})));
  }
  std::vector<uint32_t> terms(c.tokens, 0);
  for (uint32_t expert = 0; expert < c.experts; ++expert) {
    const auto row = static_cast<uint32_t>(tables.row_tokens.size());
    const auto rows = static_cast<uint32_t>(tokens_of[expert].size());
    if (rows > 0) tables.groups.push_back({.expert = expert, .row = row, .rows = rows});
    for (uint32_t token : tokens_of[expert]) {
      tables.term_rows[token * shape.terms + terms[token]++] =
          static_cast<uint32_t>(tables.row_tokens.size());
      tables.row_tokens.push_back(token);
    }
  }
  tables.groups.resize(RoutedGroupsMax(shape));
  return tables;
}

void ExpectEqual(const Tables& ours, const Tables& twin) {
  for (size_t i = 0; i < twin.groups.size(); ++i) {
    ASSERT_EQ(ours.groups[i].rows, twin.groups[i].rows) << "group " << i;
    ASSERT_EQ(ours.groups[i].expert, twin.groups[i].expert) << "group " << i;
    ASSERT_EQ(ours.groups[i].row, twin.groups[i].row) << "group " << i;
  }
  // Rows behind the last group belong to nobody.
  EXPECT_EQ(std::vector<uint32_t>(ours.row_tokens.begin(),
                                  ours.row_tokens.begin() + std::ssize(twin.row_tokens)),
            twin.row_tokens);
  EXPECT_EQ(ours.term_rows, twin.term_rows);
  for (size_t i = 0; i < twin.term_weights.size(); ++i) {
    const float a = ours.term_weights[i];
    const float b = twin.term_weights[i];
    // expf errs by 2 ulp, sums over experts in float32 by a rounding for each of their 16 levels.
    ASSERT_TRUE(std::isnan(a) ? std::isnan(b) : std::abs(a - b) <= std::abs(b) * 0x1p-19f)
        << "weight " << i << ": " << a << " instead of " << b;
  }
}

Tables RouteOnGpu(const Case& c, const Floats& logits, const Floats& shared_logits) {
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<float> device_shared(shared_logits);
  const DeviceArray<uint32_t> sequences(RowSequence(c));
  const DeviceTables tables(c);
  EXPECT_EQ(RouteTokens(*Gpu(), device_logits.data(), c.shared ? device_shared.data() : nullptr,
                        sequences.data(), ShapeOf(c), c.normalize, tables.Get()),
            cudaSuccess);
  return tables.Read();
}

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
      {.tokens = 1, .experts = 8, .per_token = 2, .normalize = true},
      {.tokens = 64, .experts = 8, .per_token = 2, .normalize = true},
      {.tokens = 33, .experts = 60, .per_token = 4, .shared = true},
      {.tokens = 16, .experts = 128, .per_token = 8, .normalize = true, .idle = {3, 14, 15}},
      {.tokens = 64, .experts = 512, .per_token = 10, .shared = true, .normalize = true},
      {.tokens = 5, .experts = 5, .per_token = 5},
      {.tokens = 4, .experts = 3, .per_token = 1, .shared = true, .idle = {0, 3}},
      {.tokens = 2, .experts = 16, .per_token = 4, .idle = {0, 1}},
      {.tokens = 64, .experts = 512, .per_token = 512},
  };
  return cases;
}

Floats Normal(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, 2.0f);
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(RouteTokensTest, EqualsItsTwin) {
  SKIP_WITHOUT_GPU();
  std::mt19937 random(1);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.experts << " experts");
    const Floats logits = Normal(size_t{c.tokens} * c.experts, random);
    const Floats shared = Normal(c.tokens, random);

    ExpectEqual(RouteOnGpu(c, logits, shared), RouteSlowly(c, logits, shared));
  }
}

TEST(RouteTokensTest, OfEqualLogitsTheFirstAreChosen) {
  SKIP_WITHOUT_GPU();
  std::mt19937 random(2);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.experts << " experts");
    Floats logits = Normal(size_t{c.tokens} * c.experts, random);
    for (float& logit : logits) logit = std::round(logit);
    const Floats shared = Normal(c.tokens, random);

    ExpectEqual(RouteOnGpu(c, logits, shared), RouteSlowly(c, logits, shared));
  }
}

// A NaN gives weights that are none, and still different experts.
TEST(RouteTokensTest, WhatIsNotANumberStillChoosesDifferentExperts) {
  SKIP_WITHOUT_GPU();
  const Case c = {.tokens = 4, .experts = 40, .per_token = 3, .normalize = true};
  std::mt19937 random(3);
  Floats logits = Normal(size_t{c.tokens} * c.experts, random);
  logits[7] = NAN;                                   // One.
  std::fill_n(logits.begin() + 40, 40, NAN);         // All.
  std::fill_n(logits.begin() + 80, 40, -INFINITY);   // No number is larger,
  std::fill_n(logits.begin() + 120, 38, -INFINITY);  // and all but two.

  ExpectEqual(RouteOnGpu(c, logits, {}), RouteSlowly(c, logits, {}));
}

TEST(RouteTokensTest, RefusesWhatDoesNotFit) {
  SKIP_WITHOUT_GPU();
  const auto route = [](const RoutingShape& shape) {
    return RouteTokens(*Gpu(), nullptr, nullptr, nullptr, shape, false, {});
  };
  EXPECT_EQ(route({.tokens = 65, .experts = 8, .per_token = 2, .terms = 2}), cudaErrorInvalidValue);
  EXPECT_EQ(route({.tokens = 1, .experts = 513, .per_token = 2, .terms = 2}),
            cudaErrorInvalidValue);
  EXPECT_EQ(route({.tokens = 1, .experts = 8, .per_token = 9, .terms = 9}), cudaErrorInvalidValue);
}

// The weights of all experts, `each` of every one.
struct Experts {
  Experts(const Case& c, uint32_t each, uint32_t outputs, uint32_t inputs, DType type,
          std::mt19937& random) {
    std::uniform_int_distribution<int> numbers(-100, 100);
    for (uint32_t i = 0; i < c.experts * each; ++i) {
      const size_t count = size_t{outputs} * inputs;
      std::vector<std::byte> bytes(count);
      for (std::byte& byte : bytes) {
        byte = static_cast<std::byte>(numbers(random));
        if (byte == std::byte{0xff}) byte = std::byte{1};  // No number of E4M3's.
      }
      if (!HasScales(type)) {
        Floats values(count);
        for (float& value : values) value = static_cast<float>(numbers(random)) / 64;
        bytes = Encode(values, type);
      }
      weights.push_back(std::make_unique<DeviceArray<std::byte>>(bytes));
      scales.push_back(std::make_unique<DeviceArray<float>>(Normal(outputs, random)));
      table.push_back({.weight = weights.back()->data(),
                       .scales = HasScales(type) ? scales.back()->data() : nullptr,
                       .outputs = outputs});
    }
  }

  std::vector<std::unique_ptr<DeviceArray<std::byte>>> weights;
  std::vector<std::unique_ptr<DeviceArray<float>>> scales;
  std::vector<SkinnyOutput> table;  // [experts, each]
};

struct ProductCase {
  Case routing;
  uint32_t inputs;
  uint32_t outputs;
  uint32_t each;
  bool by_token;
};

// What SkinnyLinear makes of the rows of each expert, one after the other: [each], [rows, outputs].
std::vector<std::vector<std::byte>> MultiplySlowly(const ProductCase& c, const Experts& experts,
                                                   const Tables& tables, const Floats& x,
                                                   DType type, DType weight_type) {
  const size_t row_bytes = c.outputs * DTypeBytes(type);
  const size_t rows = size_t{c.routing.tokens} * c.routing.per_token;
  std::vector<std::vector<std::byte>> results(
      c.each, std::vector<std::byte>(rows * row_bytes, std::byte{0xff}));
  for (const RoutedGroup& group : tables.groups) {
    if (group.rows == 0) continue;
    Floats gathered;
    for (uint32_t row = group.row; row < group.row + group.rows; ++row) {
      const size_t from = c.by_token ? tables.row_tokens[row] : row;
      const auto begin = x.begin() + static_cast<ptrdiff_t>(from * c.inputs);
      gathered.insert(gathered.end(), begin, begin + c.inputs);
    }
    const DeviceArray<std::byte> device_x(Encode(gathered, type));
    for (uint32_t i = 0; i < c.each; ++i) {
      const DeviceArray<std::byte> out(group.rows * row_bytes);
      SkinnyOutput output = experts.table[group.expert * c.each + i];
      output.out = out.data();
      EXPECT_EQ(SkinnyLinear(*Gpu(), device_x.data(), type, group.rows, c.inputs, weight_type,
                             &output, 1, type),
                cudaSuccess);
      std::ranges::copy(out.Read(),
                        results[i].begin() + static_cast<ptrdiff_t>(group.row * row_bytes));
    }
  }
  return results;
}

class RoutedLinearTest : public testing::TestWithParam<std::tuple<DType, DType>> {};

TEST_P(RoutedLinearTest, EqualsTheProductsOfOneExpertAfterTheOther) {
  SKIP_WITHOUT_GPU();
  const auto& [type, weight_type] = GetParam();
  std::mt19937 random(4);
  for (const ProductCase& c : std::vector<ProductCase>{
           {{.tokens = 1, .experts = 8, .per_token = 2}, 256, 48, 2, true},
           {{.tokens = 7, .experts = 16, .per_token = 3, .idle = {2, 6}}, 128, 33, 2, true},
           {{.tokens = 7, .experts = 16, .per_token = 3, .idle = {2, 6}}, 256, 40, 1, false},
           {{.tokens = 40, .experts = 8, .per_token = 2}, 384, 32, 1, false},
           // All go to one expert: more rows than are reckoned with.
           {{.tokens = 64, .experts = 32, .per_token = 1}, 128, 64, 2, true},
       }) {
    SCOPED_TRACE(testing::Message() << c.routing.tokens << " tokens, " << c.inputs << " inputs");
    Floats logits = Normal(size_t{c.routing.tokens} * c.routing.experts, random);
    if (c.routing.per_token == 1) {
      for (size_t i = 5; i < logits.size(); i += c.routing.experts) logits[i] = 20.0f;
    }
    const DeviceTables tables(c.routing);
    const DeviceArray<float> device_logits(logits);
    const DeviceArray<uint32_t> sequences(RowSequence(c.routing));
    const RoutingShape shape = ShapeOf(c.routing);
    ASSERT_EQ(RouteTokens(*Gpu(), device_logits.data(), nullptr, sequences.data(), shape, false,
                          tables.Get()),
              cudaSuccess);
    const Experts experts(c.routing, c.each, c.outputs, c.inputs, weight_type, random);
    const DeviceArray<SkinnyOutput> table(experts.table);
    const size_t rows = size_t{shape.tokens} * shape.per_token;
    const Floats x =
        Decode(Encode(Normal((c.by_token ? shape.tokens : rows) * c.inputs, random), type), type);
    const DeviceArray<std::byte> device_x(Encode(x, type));
    RoutedProducts products = {.shape = shape,
                               .tables = tables.Get(),
                               .by_token = c.by_token,
                               .inputs = c.inputs,
                               .outputs = c.outputs,
                               .each = c.each,
                               .experts = table.data()};
    std::vector<std::unique_ptr<DeviceArray<std::byte>>> outs;
    for (uint32_t i = 0; i < c.each; ++i) {
      outs.push_back(std::make_unique<DeviceArray<std::byte>>(rows * c.outputs * DTypeBytes(type)));
      products.out[i] = outs.back()->data();
    }

    ASSERT_EQ(RoutedLinear(*Gpu(), device_x.data(), type, weight_type, products), cudaSuccess);

    const auto expected = MultiplySlowly(c, experts, tables.Read(), x, type, weight_type);
    for (uint32_t i = 0; i < c.each; ++i)
      EXPECT_EQ(outs[i]->Read(), expected[i]) << "product " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Types, RoutedLinearTest,
    testing::Values(std::tuple(DType::kBF16, DType::kBF16), std::tuple(DType::kBF16, DType::kI8),
                    std::tuple(DType::kBF16, DType::kFp8), std::tuple(DType::kF16, DType::kF16),
                    std::tuple(DType::kF16, DType::kI8), std::tuple(DType::kF16, DType::kFp8)),
    [](const auto& param) {
      return std::string(DTypeName(std::get<0>(param.param))) + "_" +
             DTypeName(std::get<1>(param.param));
    });

}  // namespace
}  // namespace baton::cuda
