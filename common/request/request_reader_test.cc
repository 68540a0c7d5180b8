// Every way in which a request can be bad is refused with the field's name; what is absent gets its
// value.
#include "common/request/request_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::StartsWith;

// The committed demo model: 2048 tokens of context.
const ModelProfile& Model() {
  static const ModelProfile* const model = [] {
    absl::StatusOr<ModelProfile> loaded = ModelProfile::Load("deploy/demo_model/model");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return new ModelProfile(*std::move(loaded));
  }();
  return *model;
}

v1::GenerateRequest Good() {
  v1::GenerateRequest request;
  request.mutable_prompt_ids()->add_ids(5);
  request.mutable_prompt_ids()->add_ids(6);
  return request;
}

struct BadCase {
  std::string field;  // How the message begins.
  std::function<void(v1::GenerateRequest*)> spoil;
};

class BadRequestTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadRequestTest, IsRefusedByName) {
  v1::GenerateRequest request = Good();
  ASSERT_TRUE(ReadRequest(request, Model(), 1).ok());
  GetParam().spoil(&request);

  const absl::Status status = ReadRequest(request, Model(), 1).status();

  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), StartsWith(GetParam().field + ":"));
}

void AddMessage(v1::GenerateRequest* request, const std::string& role) {
  v1::ChatMessage* message = request->mutable_chat()->add_messages();
  message->set_role(role);
  message->set_content("hi");
}

using Request = v1::GenerateRequest;
INSTANTIATE_TEST_SUITE_P(
    Fields, BadRequestTest,
    testing::Values(
        BadCase{"prompt", [](Request* r) { r->clear_input(); }},
        BadCase{"prompt", [](Request* r) { r->set_prompt(""); }},
        BadCase{"prompt", [](Request* r) { r->set_prompt("\xff"); }},
        BadCase{"prompt", [](Request* r) { r->set_prompt(std::string(20000, 'x')); }},
        BadCase{"prompt", [](Request* r) { r->set_prompt(std::string(10 << 20, 'x')); }},
        BadCase{"prompt_ids", [](Request* r) { r->mutable_prompt_ids()->clear_ids(); }},
        BadCase{"prompt_ids[1]", [](Request* r) { r->mutable_prompt_ids()->set_ids(1, -1); }},
        BadCase{"prompt_ids[1]", [](Request* r) { r->mutable_prompt_ids()->set_ids(1, 1 << 20); }},
        BadCase{"prompt_ids",
                [](Request* r) { r->mutable_prompt_ids()->mutable_ids()->Resize(2048, 5); }},
        BadCase{"chat.messages", [](Request* r) { r->mutable_chat(); }},
        BadCase{"chat", [](Request* r) { AddMessage(r, "wizard"); }},
        BadCase{"n", [](Request* r) { r->set_n(2); }},
        BadCase{"n", [](Request* r) { r->set_n(0); }},
        BadCase{"priority", [](Request* r) { r->set_priority(101); }},
        BadCase{"priority", [](Request* r) { r->set_priority(INT32_MIN); }},
        BadCase{"max_tokens", [](Request* r) { r->set_max_tokens(0); }},
        BadCase{"max_tokens", [](Request* r) { r->set_max_tokens(2047); }},
        BadCase{"max_tokens", [](Request* r) { r->set_max_tokens(UINT32_MAX); }},
        BadCase{"generated_ids[0]", [](Request* r) { r->add_generated_ids(-5); }},
        BadCase{"generated_ids",
                [](Request* r) {
                  r->set_max_tokens(1);
                  r->add_generated_ids(5);
                  r->add_generated_ids(5);
                }},
        BadCase{"sampling.temperature",
                [](Request* r) { r->mutable_sampling()->set_temperature(-0.1f); }},
        BadCase{"sampling.temperature",
                [](Request* r) { r->mutable_sampling()->set_temperature(NAN); }},
        BadCase{"sampling.temperature",
                [](Request* r) { r->mutable_sampling()->set_temperature(INFINITY); }},
        BadCase{"sampling.top_p", [](Request* r) { r->mutable_sampling()->set_top_p(0); }},
        BadCase{"sampling.top_p", [](Request* r) { r->mutable_sampling()->set_top_p(1.01f); }},
        BadCase{"sampling.min_p", [](Request* r) { r->mutable_sampling()->set_min_p(-0.01f); }},
        BadCase{"sampling.min_p", [](Request* r) { r->mutable_sampling()->set_min_p(1.01f); }},
        BadCase{"sampling.repetition_penalty",
                [](Request* r) { r->mutable_sampling()->set_repetition_penalty(0); }},
        BadCase{"sampling.presence_penalty",
                [](Request* r) { r->mutable_sampling()->set_presence_penalty(2.1f); }},
        BadCase{"sampling.frequency_penalty",
                [](Request* r) { r->mutable_sampling()->set_frequency_penalty(-2.1f); }},
        BadCase{"sampling.logit_bias",
                [](Request* r) { (*r->mutable_sampling()->mutable_logit_bias())[1] = 101; }},
        BadCase{"sampling.logit_bias",
                [](Request* r) { (*r->mutable_sampling()->mutable_logit_bias())[-1] = 1; }},
        BadCase{"sampling.logprobs", [](Request* r) { r->mutable_sampling()->set_logprobs(21); }},
        BadCase{"stopping.stop_token_ids[0]",
                [](Request* r) { r->mutable_stopping()->add_stop_token_ids(1 << 20); }},
        BadCase{
            "stopping.stop_token_ids",
            [](Request* r) { r->mutable_stopping()->mutable_stop_token_ids()->Resize(257, 1); }},
        BadCase{"stopping.min_tokens",
                [](Request* r) { r->mutable_stopping()->set_min_tokens(2047); }},
        BadCase{"stop[0]", [](Request* r) { r->add_stop(""); }}, BadCase{"stop", [](Request* r) {
                                                                           for (int i = 0; i < 17;
                                                                                ++i)
                                                                             r->add_stop("x");
                                                                         }}));

TEST(RequestReaderTest, TextFarBeyondTheContextIsNotTokenizedToItsEnd) {
  std::string text;
  while (text.size() + 2 < Model().text_bytes_max) text += " a";
  const absl::Status status = TextTokens("text", text, false, Model()).status();
  EXPECT_EQ(status.ToString(),
            "INVALID_ARGUMENT: text: more than 4096 tokens, but the context has 2048");

  text.resize(Model().text_bytes_max + 1, 'a');
  EXPECT_EQ(TextTokens("text", text, false, Model()).status().ToString(),
            "INVALID_ARGUMENT: text: 131073 bytes are too many for a context of 2048 tokens: at "
            "most 131072 may be given");
}

TEST(RequestReaderTest, AbsentMaxTokensReachesToTheEndOfTheContext) {
  const absl::StatusOr<CheckedRequest> request = ReadRequest(Good(), Model(), 1);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->total_tokens_max, 2048u);
  EXPECT_EQ(request->prompt_tokens, 2u);
}

TEST(RequestReaderTest, LargestMaxTokensFits) {
  v1::GenerateRequest asked = Good();
  asked.set_max_tokens(2046);
  const absl::StatusOr<CheckedRequest> request = ReadRequest(asked, Model(), 1);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->total_tokens_max, 2048u);
}

TEST(RequestReaderTest, SeedIsDrawnOnlyIfAbsent) {
  EXPECT_EQ(ReadRequest(Good(), Model(), 77)->sampling.seed(), 77u);
  EXPECT_EQ(ReadRequest(Good(), Model(), UINT64_MAX)->sampling.seed(), (uint64_t{1} << 53) - 1);
  v1::GenerateRequest asked = Good();
  asked.mutable_sampling()->set_seed(0);
  EXPECT_EQ(ReadRequest(asked, Model(), 77)->sampling.seed(), 0u);
}

TEST(RequestReaderTest, EosIdsAreStopTokensUnlessIgnored) {
  v1::GenerateRequest asked = Good();
  ASSERT_FALSE(Model().eos_token_ids.empty());
  const TokenId eos = Model().eos_token_ids.front();
  asked.mutable_stopping()->add_stop_token_ids(eos);
  const absl::StatusOr<CheckedRequest> with_eos = ReadRequest(asked, Model(), 1);
  ASSERT_TRUE(with_eos.ok());
  EXPECT_EQ(with_eos->stopping.stop_token_ids_size(),
            static_cast<int>(Model().eos_token_ids.size()));
  asked.mutable_stopping()->clear_stop_token_ids();
  asked.mutable_stopping()->set_ignore_eos(true);
  EXPECT_EQ(ReadRequest(asked, Model(), 1)->stopping.stop_token_ids_size(), 0);
}

TEST(RequestReaderTest, GeneratedIdsFollowThePrompt) {
  v1::GenerateRequest asked = Good();
  asked.add_generated_ids(7);
  const absl::StatusOr<CheckedRequest> request = ReadRequest(asked, Model(), 1);
  ASSERT_TRUE(request.ok());
  EXPECT_THAT(request->tokens, ElementsAre(5, 6, 7));
  EXPECT_EQ(request->prompt_tokens, 2u);
}

TEST(RequestReaderTest, PromptTextIsTokenized) {
  v1::GenerateRequest asked;
  asked.set_prompt("Once upon a time");
  const absl::StatusOr<CheckedRequest> request = ReadRequest(asked, Model(), 1);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(Model().tokenizer->Decode(request->tokens, true), "Once upon a time");
}

TEST(RequestReaderTest, ChatIsRenderedByTheModelsFormat) {
  v1::GenerateRequest asked;
  AddMessage(&asked, "user");
  const absl::StatusOr<CheckedRequest> request = ReadRequest(asked, Model(), 1);
  ASSERT_TRUE(request.ok()) << request.status();
  const std::string text = Model().tokenizer->Decode(request->tokens, false);
  EXPECT_EQ(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(RequestReaderTest, RequestIdsAreShortAndPrintable) {
  EXPECT_TRUE(CheckRequestId("abc-123/X").ok());
  EXPECT_FALSE(CheckRequestId("").ok());
  EXPECT_FALSE(CheckRequestId("a b").ok());
  EXPECT_FALSE(CheckRequestId("a\nb").ok());
  EXPECT_FALSE(CheckRequestId(std::string(129, 'a')).ok());
}

// Loads the demo model as if its configuration had this vocabulary.
absl::Status LoadWithVocabulary(int vocab_size) {
  const std::filesystem::path demo = "deploy/demo_model/model";
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) /
                                       absl::StrCat("vocabulary_", getpid(), "_", vocab_size);
  std::filesystem::create_directories(folder);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    if (std::filesystem::exists(demo / name)) {
      std::filesystem::copy_file(demo / name, folder / name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
  }
  std::ofstream(folder / "config.json")
      << R"({"max_position_embeddings": 64, "vocab_size": )" << vocab_size << "}";
  const absl::Status status = ModelProfile::Load(folder.string()).status();
  std::filesystem::remove_all(folder);
  return status;
}

TEST(ModelProfileTest, TokenizerMayHaveFewerIdsThanTheModelAndNotMore) {
  const int ids = Model().tokenizer->vocab_size();

  EXPECT_TRUE(LoadWithVocabulary(ids).ok());
  EXPECT_TRUE(LoadWithVocabulary(ids + 100).ok());
  EXPECT_THAT(std::string(LoadWithVocabulary(ids - 1).message()),
              testing::AllOf(testing::HasSubstr(absl::StrCat("ids up to ", ids - 1, ",")),
                             testing::HasSubstr(absl::StrCat("vocab_size is ", ids - 1))));
}

TEST(ModelProfileTest, MissingFolderIsNamed) {
  const absl::Status status = ModelProfile::Load("/nowhere/at/all").status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("/nowhere/at/all"));
}

}  // namespace
}  // namespace baton
