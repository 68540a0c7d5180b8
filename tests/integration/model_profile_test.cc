// Goal: what the router reads of a model, without linking any model code, is what workers read of
// it; else it would refuse them. Method: the configuration of every golden model, read by both.
#include "common/request/model_profile.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/model/model_config.h"

namespace baton {
namespace {

constexpr const char* kDemoModel = "deploy/demo_model/model/";
constexpr uint32_t kVocabSize = 4096;  // Enough for the demo model's tokenizer.

class ModelProfileAgreementTest : public testing::Test {
 protected:
  ModelProfileAgreementTest()
      : directory_(testing::TempDir() + std::to_string(getpid()) + "model_profile_test") {
    std::filesystem::create_directories(directory_);
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy_file(std::string(kDemoModel) + name, directory_ + "/" + name);
    }
  }
  ~ModelProfileAgreementTest() override { std::filesystem::remove_all(directory_); }

  void ExpectAgreement(nlohmann::json config, const std::string& name) {
    config["vocab_size"] = kVocabSize;
    std::ofstream(directory_ + "/config.json") << config.dump();

    const absl::StatusOr<ModelConfig> worker = ModelConfig::Load(directory_);
    const absl::StatusOr<ModelProfile> router = ModelProfile::Load(directory_);

    ASSERT_TRUE(worker.ok()) << name << ": " << worker.status();
    ASSERT_TRUE(router.ok()) << name << ": " << router.status();
    EXPECT_EQ(router->architecture, worker->architecture) << name;
    EXPECT_EQ(router->vocab_size, worker->vocab_size) << name;
    EXPECT_EQ(router->context_tokens, worker->context_tokens) << name;
    EXPECT_EQ(router->eos_token_ids, worker->eos_token_ids) << name;
  }
  static nlohmann::json ReadConfig(const std::string& folder) {
    std::ifstream file(folder + "/config.json");
    return nlohmann::json::parse(file);
  }

  const std::string directory_;
};

TEST_F(ModelProfileAgreementTest, OfEveryGoldenModel) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("tests/goldens/models")) {
    if (!entry.is_directory()) continue;
    ExpectAgreement(ReadConfig(entry.path().string()), entry.path().filename().string());
    ++count;
  }
  EXPECT_GE(count, 30);
}

// Files that extend the context by yarn often leave max_position_embeddings at the original one.
TEST_F(ModelProfileAgreementTest, OfContextsThatYarnExtends) {
  nlohmann::json config = ReadConfig("tests/goldens/models/qwen2");
  config.erase("rope_parameters");
  config["rope_theta"] = 10000.0;
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 2.2}};
  ExpectAgreement(config, "in the old spelling");
  config["rope_scaling"]["original_max_position_embeddings"] = 100;
  ExpectAgreement(config, "with an original context");
  config["rope_scaling"].erase("factor");
  ExpectAgreement(config, "without a factor");
  config["rope_scaling"]["factor"] = 1e9;
  ExpectAgreement(config, "beyond every limit");
}

}  // namespace
}  // namespace baton
