// Every vector of the published tokenizers under $BATON_TEST_DATA, without one difference.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/tokenizer.h"

namespace baton {
namespace {

class ConformanceTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const char* data = std::getenv("BATON_TEST_DATA");
    folder_ = std::string(data != nullptr ? data : "../shared/data") + "/tokenizers/" + GetParam();
    if (!std::filesystem::exists(folder_ + "/vectors.json")) {
      GTEST_SKIP() << "looked for " << folder_ << "/vectors.json";
    }
    auto tokenizer = Tokenizer::Load(folder_);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    auto vectors = ReadJsonFile(folder_ + "/vectors.json", Tokenizer::kFileBytesMax);
    ASSERT_TRUE(vectors.ok()) << vectors.status();
    vectors_ = *std::move(vectors);
  }

  std::string Stream(const std::vector<TokenId>& ids, bool skip_special_tokens) const {
    IncrementalDecoder decoder(tokenizer_.get(), {.skip_special_tokens = skip_special_tokens});
    std::string text;
    for (const TokenId id : ids) text += decoder.Push(id);
    return text + decoder.Flush();
  }

  std::string folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Json vectors_;
};

TEST_P(ConformanceTest, EncodesEachText) {
  ASSERT_FALSE(vectors_["encode"].empty());
  for (const Json& vector : vectors_["encode"]) {
    const auto ids = tokenizer_->Encode(vector["text"], /*add_special_tokens=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, vector["ids"].get<std::vector<TokenId>>()) << vector["text"];
  }
}

TEST_P(ConformanceTest, EncodesAndDecodesAsHuggingFaceDoes) {
  ASSERT_FALSE(vectors_["hf"].empty());
  for (const Json& vector : vectors_["hf"]) {
    const auto ids = tokenizer_->Encode(vector["text"], /*add_special_tokens=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, vector["ids_with_special"].get<std::vector<TokenId>>()) << vector["text"];
    EXPECT_EQ(tokenizer_->Decode(*ids, false), vector["decoded_with_special"]);
    EXPECT_EQ(tokenizer_->Decode(*ids, true), vector["decoded_without_special"]);
    EXPECT_EQ(Stream(*ids, false), vector["decoded_with_special"]);
    EXPECT_EQ(Stream(*ids, true), vector["decoded_without_special"]);
  }
}

INSTANTIATE_TEST_SUITE_P(Published, ConformanceTest, testing::Values("gpt2", "llama2"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace baton
