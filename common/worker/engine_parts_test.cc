// Goal: flags become options or an error that names them, and what no flag says follows the model.
#include "common/worker/engine_parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "common/model/testing/tiny_model.h"

ABSL_DECLARE_FLAG(std::string, model);
ABSL_DECLARE_FLAG(std::string, kv_dtype);
ABSL_DECLARE_FLAG(std::string, weights);

namespace baton {
namespace {

using testing::HasSubstr;

class EnginePartsTest : public testing::Test {
 protected:
  EnginePartsTest() { std::filesystem::create_directories(folder_); }
  ~EnginePartsTest() override { std::filesystem::remove_all(folder_); }

  DType CacheOf(DType stored, const std::string& weights, const std::string& kv_dtype) {
    EXPECT_TRUE(WriteTinyModel(folder_, {.dtype = stored}).ok());
    absl::SetFlag(&FLAGS_model, folder_);
    absl::SetFlag(&FLAGS_weights, weights);
    absl::SetFlag(&FLAGS_kv_dtype, kv_dtype);
    EngineOptions options = EngineOptionsFromFlags().value();
    options.kv_memory_bytes = 1 << 20;
    options.threads = 1;
    return EngineParts::Create(options).value().arena->layout().dtype;
  }

  const absl::FlagSaver saver_;
  const std::string folder_ = testing::TempDir() + std::to_string(getpid()) + "engine_parts_test";
};

TEST_F(EnginePartsTest, TheCacheIsOfTheTypeThatIsStoredUnlessAFlagSaysMore) {
  EXPECT_EQ(CacheOf(DType::kF32, "", ""), DType::kF32);
  EXPECT_EQ(CacheOf(DType::kBF16, "", ""), DType::kBF16);
  EXPECT_EQ(CacheOf(DType::kF16, "", ""), DType::kF16);
  EXPECT_EQ(CacheOf(DType::kF16, "fp8", ""), DType::kF16);
  EXPECT_EQ(CacheOf(DType::kF32, "int4", "fp8"), DType::kFp8);
}

TEST(DefaultKvDTypeTest, OnAGpuItIsThatOfTheActivations) {
  EXPECT_EQ(DefaultKvDType(DeviceKind::kCpu, DType::kF16, DType::kF32), DType::kF16);
  EXPECT_EQ(DefaultKvDType(DeviceKind::kCuda, DType::kF16, DType::kBF16), DType::kBF16);
  EXPECT_EQ(DefaultKvDType(DeviceKind::kCuda, DType::kBF16, DType::kF32), DType::kF32);
}

TEST_F(EnginePartsTest, AnUnknownTypeIsRefusedByItsFlag) {
  absl::SetFlag(&FLAGS_model, folder_);
  absl::SetFlag(&FLAGS_kv_dtype, "fp4");

  const absl::Status status = EngineOptionsFromFlags().status();

  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--kv_dtype: unknown element type 'fp4'"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("fp8"));
}

}  // namespace
}  // namespace baton
