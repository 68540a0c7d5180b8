#include "common/tokenizer/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/tokenizer.h"

namespace baton {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGoldens = "tests/goldens/chat/";

std::string ReadTemplate(const std::string& name) {
  auto text = ReadTextFile(absl::StrCat(kGoldens, "templates/", name, ".jinja"), 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  text->pop_back();  // The line end of the file.
  return *std::move(text);
}

const Json& Goldens() {
  static const Json goldens = [] {
    auto json = ReadJsonFile(absl::StrCat(kGoldens, "goldens.json"), 1 << 24);
    EXPECT_TRUE(json.ok()) << json.status();
    return *std::move(json);
  }();
  return goldens;
}

std::vector<ChatMessage> Messages(const Json& conversation) {
  std::vector<ChatMessage> messages;
  for (const Json& message : conversation) {
    messages.push_back({message["role"], message["content"]});
  }
  return messages;
}

std::vector<size_t> CaseIndices() {
  std::vector<size_t> indices(Goldens()["cases"].size());
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = i;
  return indices;
}

class ChatGoldenTest : public testing::TestWithParam<size_t> {};

// Goal: what is rendered is what Jinja2 makes of the original template, character for character.
TEST_P(ChatGoldenTest, RendersAsJinjaDoes) {
  const Json& golden = Goldens()["cases"][GetParam()];
  const auto format =
      ChatFormat::Create(ReadTemplate(golden["template"]), golden["bos"], golden["eos"]);
  ASSERT_TRUE(format.ok()) << golden["template"] << format.status();
  EXPECT_EQ(format->name(), golden["style"]);

  const Json& conversations = Goldens()["conversations"];
  for (size_t i = 0; i < conversations.size(); ++i) {
    const Json& expected = golden["rendered"][i];
    const auto prompt = format->Render(Messages(conversations[i]));
    if (expected.is_null()) {
      EXPECT_TRUE(absl::IsInvalidArgument(prompt.status())) << conversations[i];
      EXPECT_THAT(std::string(prompt.status().message()), HasSubstr("messages"));
    } else {
      ASSERT_TRUE(prompt.ok()) << conversations[i] << prompt.status();
      EXPECT_EQ(*prompt, expected) << conversations[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Templates, ChatGoldenTest, testing::ValuesIn(CaseIndices()),
                         [](const auto& test) {
                           std::string name = Goldens()["cases"][test.param]["template"];
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

ChatFormat ChatMl() {
  auto format = ChatFormat::Create(ReadTemplate("chatml"), "", "");
  EXPECT_TRUE(format.ok()) << format.status();
  return *std::move(format);
}

TEST(ChatFormatTest, NamesTheFieldWithAnUnknownRole) {
  const std::vector<ChatMessage> messages = {{"user", "a"}, {"tool", "b"}};

  const auto prompt = ChatMl().Render(messages);

  EXPECT_TRUE(absl::IsInvalidArgument(prompt.status()));
  EXPECT_THAT(std::string(prompt.status().message()), HasSubstr("messages[1].role: \"tool\""));
}

TEST(ChatFormatTest, RefusesNoAndTooManyMessages) {
  EXPECT_TRUE(absl::IsInvalidArgument(ChatMl().Render({}).status()));
  const std::vector<ChatMessage> many(ChatFormat::kMessageCountMax + 1, {"user", "x"});
  EXPECT_TRUE(absl::IsInvalidArgument(ChatMl().Render(many).status()));
}

// Each would be rendered wrongly if it were taken for the known template that it looks like.
TEST(ChatFormatTest, RefusesTemplatesThatOnlyLookLikeKnownOnes) {
  const auto edited = [](const std::string& name, const std::string& from, const std::string& to) {
    std::string text = ReadTemplate(name);
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << name << ": " << from;
    return text.replace(at, from.size(), to);
  };
  const std::vector<std::string> strangers = {
      "",
      "{{",
      "{% for m in messages %}{{ m }}{% endfor %}",
      "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% endfor %}",
      edited("chatml", "message['content']", "message['content'] | trim"),
      edited("chatml", "{% endfor %}", "{% endfor %}Answer now."),
      edited("chatml", "{% endfor %}", "{{ '\\n' }}{% endfor %}"),
      edited("chatml", "{% if add", "{% if false and add"),
      edited("chatml", "'<|im_start|>' + message['role'] + '\\n'",
             "'<|im_start|>' + message['role'] + '<|im_sep|>'"),
      edited("qwen2", "loop.first and messages[0]['role'] != 'system'", "loop.last"),
      edited("qwen3", "reasoning_content.strip('\\n')", "reasoning_content"),
      edited("llama-3", "| trim", ""),
      edited("llama-2_older", "false == true", "true == true"),
      edited("mistral-v3", "loop.last and system", "loop.first and system"),
      edited("gemma", "model\\n", "assistant\\n"),
      edited("phi-3.5", "<|system|>", "<|sys|>"),
      edited("phi-3_small", "add_generation_prompt", "add_generation_prompt and x"),
  };
  for (const std::string& stranger : strangers) {
    const auto format = ChatFormat::Create(stranger, "<s>", "</s>");
    EXPECT_TRUE(absl::IsUnimplemented(format.status())) << stranger;
    EXPECT_THAT(std::string(format.status().message()), HasSubstr("chat_template"));
  }
}

TEST(ChatFormatTest, LoadsFromEachPlaceThatModelFoldersUse) {
  const std::string folder = testing::TempDir();
  const std::string config_path = folder + "/tokenizer_config.json";
  const auto write = [](const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
  };
  const std::vector<ChatMessage> hello = {{"user", "Hi"}};

  write(config_path, Json{{"bos_token", {{"content", "<s>"}}},
                          {"eos_token", "</s>"},
                          {"chat_template", ReadTemplate("mistral")}}
                         .dump());
  EXPECT_EQ(*ChatFormat::Load(folder)->Render(hello), "<s>[INST] Hi [/INST]");

  write(config_path, Json{{"chat_template",
                           {{{"name", "tool_use"}, {"template", "x"}},
                            {{"name", "default"}, {"template", ReadTemplate("chatml")}}}}}
                         .dump());
  EXPECT_EQ(ChatFormat::Load(folder)->name(), "chatml");

  write(config_path, "{}");
  EXPECT_TRUE(absl::IsUnimplemented(ChatFormat::Load(folder).status()));

  write(folder + "/chat_template.jinja", ReadTemplate("gemma"));
  EXPECT_EQ(ChatFormat::Load(folder)->name(), "gemma");
  std::remove((folder + "/chat_template.jinja").c_str());
  std::remove(config_path.c_str());
}

TEST(ChatFormatTest, ARenderedChatHasOneBos) {
  auto spec = ReadJsonFile("tests/goldens/tokenizers/llama3.json", 1 << 20);
  const auto tokenizer = Tokenizer::Create(*spec, Json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto format = ChatFormat::Create(ReadTemplate("llama-3"), "<|begin_of_text|>", "");
  const std::vector<ChatMessage> hello = {{"user", "Hi"}};

  const auto ids = (*tokenizer)->Encode(*format->Render(hello), /*add_special_tokens=*/false);

  const TokenId bos = *(*tokenizer)->Find("<|begin_of_text|>");
  EXPECT_EQ(std::count(ids->begin(), ids->end(), bos), 1);
  EXPECT_EQ(ids->front(), bos);
}

}  // namespace
}  // namespace baton
