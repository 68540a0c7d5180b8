#include "common/tokenizer/chat_format.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/chat_styles.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/unicode.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr std::string_view kThinkBegin = "<think>";
constexpr std::string_view kThinkEnd = "</think>";

// What Python's str.strip() takes away.
bool IsPythonSpace(const Utf8Step& step) {
  return step.kind == Utf8Step::Kind::kCharacter &&
         (IsWhiteSpace(step.code_point) || (step.code_point >= 0x1C && step.code_point <= 0x1F));
}

std::string Strip(const std::string& text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const Utf8Step step = NextUtf8(std::string_view(text).substr(begin));
    if (!IsPythonSpace(step)) break;
    begin += step.bytes;
  }
  size_t end = begin;  // Behind the last character that stays.
  for (size_t at = begin; at < text.size();) {
    const Utf8Step step = NextUtf8(std::string_view(text).substr(at));
    at += step.bytes;
    if (!IsPythonSpace(step)) end = at;
  }
  return text.substr(begin, end - begin);
}

std::string_view StripNewlines(std::string_view text, bool left, bool right) {
  while (left && !text.empty() && text.front() == '\n') text.remove_prefix(1);
  while (right && !text.empty() && text.back() == '\n') text.remove_suffix(1);
  return text;
}

// The text of a token in tokenizer_config.json: a string, or an object with "content".
absl::StatusOr<std::string> TokenText(const Json& config, const char* key) {
  const Json* field = FindField(config, key);
  if (field == nullptr) return "";
  if (field->is_string()) return field->get<std::string>();
  return StringField(*field, "content", absl::StrCat("tokenizer_config.json: ", key));
}

// "chat_template" is a string, or a list of named ones of which "default" is meant.
absl::StatusOr<std::string> TemplateText(const Json& config) {
  const Json* field = FindField(config, "chat_template");
  if (field == nullptr) return absl::UnimplementedError("chat: the model has no chat_template");
  if (field->is_string()) return field->get<std::string>();
  if (field->is_array()) {
    for (const Json& entry : *field) {
      const Json* name = FindField(entry, "name");
      if (name != nullptr && name->is_string() && *name == "default") {
        return StringField(entry, "template", "tokenizer_config.json: chat_template");
      }
    }
  }
  return absl::UnimplementedError("chat: the model has no default chat_template");
}

}  // namespace

ChatFormat::ChatFormat(ChatStyle style, std::string bos, std::string eos)
    : style_(std::move(style)), bos_(std::move(bos)), eos_(std::move(eos)) {}

absl::StatusOr<ChatFormat> ChatFormat::Load(const std::string& model_dir) {
  absl::StatusOr<Json> config =
      ReadJsonFile(model_dir + "/tokenizer_config.json", Tokenizer::kFileBytesMax);
  if (absl::IsNotFound(config.status())) config = Json();
  if (!config.ok()) return config.status();
  absl::StatusOr<std::string> text =
      ReadTextFile(model_dir + "/chat_template.jinja", kTemplateBytesMax);
  if (absl::IsNotFound(text.status())) text = TemplateText(*config);
  if (!text.ok()) return text.status();
  BATON_ASSIGN_OR_RETURN(std::string bos, TokenText(*config, "bos_token"));
  BATON_ASSIGN_OR_RETURN(std::string eos, TokenText(*config, "eos_token"));
  return Create(*text, bos, eos);
}

absl::StatusOr<ChatFormat> ChatFormat::Create(const std::string& chat_template,
                                              const std::string& bos, const std::string& eos) {
  if (chat_template.size() > kTemplateBytesMax) {
    return absl::UnimplementedError(absl::StrCat("chat: the model's chat_template has ",
                                                 chat_template.size(), " bytes, more than ",
                                                 kTemplateBytesMax));
  }
  BATON_ASSIGN_OR_RETURN(ChatStyle style, RecogniseChatTemplate(chat_template));
  return ChatFormat(std::move(style), bos, eos);
}

absl::Status ChatFormat::Validate(std::span<const ChatMessage> messages) const {
  if (messages.empty() || messages.size() > kMessageCountMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("messages: ", messages.size(), ", expected 1 to ", kMessageCountMax));
  }
  const auto refuse = [](size_t i, const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat("messages[", i, "].role: ", why));
  };
  const size_t dialogue_begin = messages[0].role == "system" ? 1 : 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    const bool is_system = role == "system";
    if (!is_system && role != "user" && role != "assistant") {
      return refuse(i, absl::StrCat("\"", role, "\" is none of system, user, assistant"));
    }
    if (is_system && style_.system == ChatStyle::System::kRefused) {
      return refuse(i,
                    absl::StrCat("the model's chat format, ", style_.name, ", has no \"system\""));
    }
    if (is_system && i > 0 && style_.system != ChatStyle::System::kTurn) {
      return refuse(i, absl::StrCat("in the model's chat format, ", style_.name,
                                    ", \"system\" may only be the first"));
    }
    const bool is_users_turn = (i - dialogue_begin) % 2 == 0;
    if (style_.alternates && i >= dialogue_begin && (role == "user") != is_users_turn) {
      return refuse(i, absl::StrCat("in the model's chat format, ", style_.name,
                                    ", \"user\" and \"assistant\" must alternate"));
    }
  }
  if (style_.alternates && messages.size() == dialogue_begin) {
    return absl::InvalidArgumentError("messages: none is the user's");
  }
  if (style_.system == ChatStyle::System::kLastUser && dialogue_begin == 1 &&
      messages.back().role != "user") {
    return refuse(messages.size() - 1,
                  absl::StrCat("in the model's chat format, ", style_.name,
                               ", \"system\" needs the last message to be the user's"));
  }
  return absl::OkStatus();
}

std::string ChatFormat::RenderSystem(const std::string& content, bool is_first) const {
  if (style_.skips_empty_system && content.empty()) return "";
  const bool is_late = !is_first && style_.late_system_prefix.has_value();
  return absl::StrCat(is_late ? *style_.late_system_prefix : style_.system_prefix,
                      style_.trims_system ? Strip(content) : content, style_.system_suffix);
}

std::string ChatFormat::RenderUser(const std::string& content, const std::string* system) const {
  std::string before = system != nullptr ? RenderSystem(*system, true) : "";
  // Llama 2 trims what the system message is part of; Gemma 3 what follows it.
  std::string body = style_.begins_user_with_bos && style_.trims_user
                         ? Strip(before + content)
                         : before + (style_.trims_user ? Strip(content) : content);
  return absl::StrCat(style_.begins_user_with_bos ? bos_ : "", style_.user_prefix, body,
                      style_.user_suffix);
}

std::string ChatFormat::RenderAssistant(const std::string& content, bool shows_thinking,
                                        bool is_last) const {
  std::string body = style_.trims_assistant ? Strip(content) : content;
  if (style_.hides_thinking) {
    std::string_view answer = content;
    std::string_view thinking;
    if (const size_t end = content.find(kThinkEnd); end != std::string::npos) {
      thinking = StripNewlines(answer.substr(0, end), false, true);
      if (const size_t begin = thinking.rfind(kThinkBegin); begin != std::string_view::npos) {
        thinking.remove_prefix(begin + kThinkBegin.size());
      }
      thinking = StripNewlines(thinking, true, true);
      answer.remove_prefix(content.rfind(kThinkEnd) + kThinkEnd.size());
      answer = StripNewlines(answer, true, false);
    }
    body = std::string(answer);
    if (shows_thinking && (is_last || !thinking.empty())) {
      body = absl::StrCat("<think>\n", std::string(thinking), "\n</think>\n\n",
                          std::string(StripNewlines(answer, true, false)));
    }
  }
  return absl::StrCat(style_.assistant_prefix, body, style_.assistant_suffix,
                      style_.ends_assistant_with_eos ? eos_ : "",
                      style_.ends_assistant_with_space ? " " : "");
}

namespace {

// The index of the last message that asks something; a tool's answer in a user's clothes does not.
size_t LastQuery(std::span<const ChatMessage> messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const std::string& content = messages[i].content;
    const std::string_view view = content;
    constexpr std::string_view kBegin = "<tool_response>";
    constexpr std::string_view kEnd = "</tool_response>";
    const bool is_tool_answer = view.substr(0, kBegin.size()) == kBegin &&
                                view.size() >= kEnd.size() &&
                                view.substr(view.size() - kEnd.size()) == kEnd;
    if (messages[i].role == "user" && !is_tool_answer) return i;
  }
  return messages.size() - 1;
}

}  // namespace

absl::StatusOr<std::string> ChatFormat::Render(std::span<const ChatMessage> messages) const {
  BATON_RETURN_IF_ERROR(Validate(messages));
  const bool system_is_turn = style_.system == ChatStyle::System::kTurn;
  const bool has_system = messages[0].role == "system";
  const size_t system_user =
      style_.system == ChatStyle::System::kLastUser ? messages.size() - 1 : 1;
  const size_t last_query = style_.hides_thinking ? LastQuery(messages) : 0;

  std::string prompt = style_.begins_with_bos ? bos_ : "";
  if (!has_system && style_.default_system.has_value()) {
    prompt += RenderSystem(*style_.default_system, true);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "system") {
      if (system_is_turn) prompt += RenderSystem(message.content, i == 0);
    } else if (message.role == "user") {
      const bool takes_system = has_system && !system_is_turn && i == system_user;
      prompt += RenderUser(message.content, takes_system ? &messages[0].content : nullptr);
    } else {
      prompt += RenderAssistant(message.content, i > last_query, i + 1 == messages.size());
    }
  }
  return prompt + style_.generation_prompt;
}

}  // namespace baton
