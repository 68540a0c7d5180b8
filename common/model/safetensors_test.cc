// Goal: a file from anywhere is either understood or refused, never read beyond its end. Method:
// good files by hand, bad ones by one change each, and random damage (run it under
// AddressSanitizer).
#include "common/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "common/json/bounded_json.h"

namespace baton {
namespace {

using testing::HasSubstr;

std::string WithHeader(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  const uint64_t size = header.size();
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(size >> (8 * i));
  return file + header + std::string(data_bytes, 'x');
}

absl::StatusOr<std::map<std::string, StoredTensor>> Parse(const std::string& file) {
  // A copy of exactly this size, so that a sanitizer sees the first byte too many.
  const std::vector<char> bytes(file.begin(), file.end());
  auto result = SafetensorsFile::Parse(std::as_bytes(std::span(bytes)), "test.safetensors");
  if (result.ok()) {
    for (auto& [name, tensor] : *result) {
      for (std::byte byte : tensor.data) EXPECT_EQ(byte, std::byte{'x'});
    }
  }
  return result;
}

void ExpectRefused(const std::string& file, const std::string& reason) {
  const absl::Status status = Parse(file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << reason;
  EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
  EXPECT_THAT(std::string(status.message()), HasSubstr("test.safetensors"));
}

// One tensor "a" with the given members.
std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(SafetensorsTest, ReadsTensorsOfAllTypes) {
  const auto tensors = Parse(WithHeader(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("ids":{"dtype":"I64","shape":[],"data_offsets":[20,28]}})",
      28));

  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ(tensors->at("a").dtype, DType::kF32);
  EXPECT_EQ(tensors->at("b").dtype, DType::kBF16);
  EXPECT_THAT(tensors->at("b").shape, testing::ElementsAre(2, 3));
  EXPECT_EQ(tensors->at("b").data.size(), 12u);
  EXPECT_EQ(tensors->at("ids").dtype, std::nullopt);
  EXPECT_EQ(tensors->at("ids").dtype_name, "I64");
}

TEST(SafetensorsTest, EmptyTensorsAndNoTensors) {
  EXPECT_TRUE(Parse(WithHeader("{}", 0)).ok());
  EXPECT_TRUE(Parse(WithHeader(OneTensor("F32", "[0,5]", "[0,0]"), 0)).ok());
}

TEST(SafetensorsTest, RefusesBadHeaders) {
  ExpectRefused("", "too few");
  ExpectRefused("1234567", "too few");
  ExpectRefused(std::string(8, '\xff'), "too large");
  ExpectRefused(WithHeader("{}", 0).substr(0, 9), "truncated");
  ExpectRefused(WithHeader("[]", 0), "not a JSON object");
  ExpectRefused(WithHeader("{", 0), "not JSON");
  ExpectRefused(WithHeader(std::string(1000, '[') + std::string(1000, ']'), 0), "nested");
  // Within its 100 MB a header could have tens of millions of values, each of tens of bytes.
  std::string values = R"({"a":[[])";
  for (size_t i = 0; i < kJsonValueCountMax; ++i) values += ",[]";
  ExpectRefused(WithHeader(values + "]}", 0), "more than 8388608 values");
  const std::string a = R"("a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]})";
  ExpectRefused(WithHeader("{" + a + "," + a + "}", 1), "twice");
}

TEST(SafetensorsTest, RefusesBadEntries) {
  ExpectRefused(WithHeader(R"({"a":3})", 0), "'a'");
  ExpectRefused(WithHeader(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4), "no dtype");
  ExpectRefused(WithHeader(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4), "no shape");
  ExpectRefused(WithHeader(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "no data_offsets");
  ExpectRefused(WithHeader(OneTensor("F31", "[1]", "[0,4]"), 4), "F31");
  ExpectRefused(WithHeader(OneTensor("F32", "[-1]", "[0,4]"), 4), "whole numbers");
  ExpectRefused(WithHeader(OneTensor("F32", "[1.5]", "[0,6]"), 6), "whole numbers");
  ExpectRefused(WithHeader(OneTensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), "dimensions");
  ExpectRefused(WithHeader(OneTensor("F32", "[1]", "[0]"), 4), "data_offsets");
  ExpectRefused(WithHeader(OneTensor("F32", "[1]", "[-4,0]"), 4), "data_offsets");
}

TEST(SafetensorsTest, RefusesOffsetsThatDoNotFit) {
  ExpectRefused(WithHeader(OneTensor("F32", "[2]", "[0,4]"), 4), "takes 8 bytes");
  ExpectRefused(WithHeader(OneTensor("F32", "[1]", "[4,0]"), 4), "takes 4 bytes");
  ExpectRefused(WithHeader(OneTensor("F32", "[2]", "[0,8]"), 7), "truncated");
  ExpectRefused(WithHeader(OneTensor("F32", "[1]", "[0,4]"), 5), "no tensor");
  ExpectRefused(WithHeader(OneTensor("F32", "[1]", "[1,5]"), 5), "gap");
  // Products and sums that wrap around 2^64.
  ExpectRefused(WithHeader(OneTensor("F32", "[4294967296,4294967296]", "[0,0]"), 0), "too large");
  ExpectRefused(WithHeader(OneTensor("F32", "[1]", "[18446744073709551612,0]"), 4),
                "takes 4 bytes");
  ExpectRefused(
      WithHeader(OneTensor("I8", "[1]", "[18446744073709551614,18446744073709551615]"), 4),
      "truncated");
  ExpectRefused(WithHeader(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                           R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                           12),
                "overlaps");
}

class SafetensorsDamageTest : public testing::TestWithParam<uint32_t> {};

TEST_P(SafetensorsDamageTest, DamagedFilesNeverReadOutside) {
  std::mt19937 random(GetParam());
  const std::string good =
      WithHeader(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                 R"("b":{"dtype":"BF16","shape":[3,1],"data_offsets":[8,14]}})",
                 14);
  ASSERT_TRUE(Parse(good).ok());
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int change = 0; change < changes; ++change) {
      // The data itself is not interpreted: damage the header.
      bad[random() % (good.size() - 14)] = static_cast<char>("09{}[],:\"x-\xff"[random() % 12]);
    }
    if (random() % 4 == 0) bad.resize(random() % bad.size());
    (void)Parse(bad).ok();
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SafetensorsDamageTest, testing::Range(0u, 10u));

class TensorFilesTest : public testing::Test {
 protected:
  TensorFilesTest()
      : directory_(testing::TempDir() + std::to_string(getpid()) + "tensor_files_test_" +
                   testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::create_directories(directory_);
  }
  ~TensorFilesTest() override { std::filesystem::remove_all(directory_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name, std::ios::binary) << text;
  }
  void ExpectRefused(const std::string& reason) {
    const absl::Status status = TensorFiles::Open(directory_).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
  }

  const std::string file_ = WithHeader(OneTensor("F32", "[1]", "[0,4]"), 4);
  const std::string directory_;
};

TEST_F(TensorFilesTest, OpensASingleFile) {
  Write("model.safetensors", file_);

  const auto files = TensorFiles::Open(directory_);

  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_NE((*files)->Find("a"), nullptr);
  EXPECT_EQ((*files)->Find("a")->data.size(), 4u);
  EXPECT_EQ((*files)->Find("b"), nullptr);
}

TEST_F(TensorFilesTest, OpensWhatTheIndexLists) {
  Write("one.safetensors", file_);
  Write("two.safetensors",
        WithHeader(R"({"b":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}})", 3));
  Write("model.safetensors.index.json",
        R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");

  const auto files = TensorFiles::Open(directory_);

  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ((*files)->files().size(), 2u);
  EXPECT_EQ((*files)->Find("b")->data.size(), 3u);
}

TEST_F(TensorFilesTest, NamesWhatIsMissingOrWrong) {
  ExpectRefused("model.safetensors");
  Write("model.safetensors", "");
  ExpectRefused("empty");
  Write("model.safetensors", file_.substr(0, file_.size() - 1));
  ExpectRefused("truncated");
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"gone.safetensors"}})");
  ExpectRefused("gone.safetensors");
  Write("one.safetensors", file_);
  Write("model.safetensors.index.json", R"({"weight_map":{"z":"one.safetensors"}})");
  ExpectRefused("'z'");
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"../one.safetensors"}})");
  ExpectRefused("../one.safetensors");
  Write("model.safetensors.index.json", R"({"weight_map":["a"]})");
  ExpectRefused("weight_map");
  Write("model.safetensors.index.json", R"({"weight_map":{"a":7}})");
  ExpectRefused("weight_map");
}

}  // namespace
}  // namespace baton
