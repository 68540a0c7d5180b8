// Chat messages to prompt text, in the form that the model was trained on.
//
// A model folder gives that form as a Jinja template. Baton runs no templates: it recognises the
// published ones by the expressions in them and renders their form itself, with the result that
// Jinja would give, then asks for the assistant's answer. A template that is not recognised is an
// error of chat calls, never a guess.
//
// Immutable; any thread. Encode the rendered text with add_special_tokens = false: it spells its
// own BOS.
#ifndef BATON_COMMON_TOKENIZER_CHAT_FORMAT_H_
#define BATON_COMMON_TOKENIZER_CHAT_FORMAT_H_

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant".
  std::string content;
};

// How a format spells a conversation. The table of known ones is in chat_styles.cc.
struct ChatStyle {
  enum class System {
    kTurn,       // A turn of its own, anywhere.
    kFirstUser,  // Put before the first user message's content, only as the first message.
    kLastUser,   // Put before the last user message's content, only as the first message.
    kRefused,    // The format has none.
  };
  const char* name = "";
  System system = System::kTurn;
  // Around a system message's content, as a turn or within the user's turn.
  std::string system_prefix = {};
  std::string system_suffix = {};
  // Instead of system_prefix for a system message that is not the first.
  std::optional<std::string> late_system_prefix = {};
  std::string user_prefix = {};
  std::string user_suffix = {};
  std::string assistant_prefix = {};
  std::string assistant_suffix = {};
  std::string generation_prompt = {};  // Behind the last message.
  // A system message that is rendered when the first message is none.
  std::optional<std::string> default_system = {};
  bool begins_with_bos = false;
  bool begins_user_with_bos = false;
  bool ends_assistant_with_eos = false;    // Behind assistant_suffix.
  bool ends_assistant_with_space = false;  // Behind EOS.
  bool trims_system = false;
  bool trims_user = false;  // With a system message put before it, where there is one.
  bool trims_assistant = false;
  bool alternates = false;  // user, assistant, user, … is a must.
  bool skips_empty_system = false;
  bool hides_thinking = false;  // Qwen3: drops <think>…</think> of earlier turns.
};

class ChatFormat {
 public:
  static constexpr size_t kMessageCountMax = 4096;
  static constexpr size_t kTemplateBytesMax = 1 << 20;

  // Reads chat_template.jinja or the chat_template of tokenizer_config.json. kUnimplemented when
  // there is none or when it is not recognised.
  static absl::StatusOr<ChatFormat> Load(const std::string& model_dir);

  // `bos` and `eos` are the tokens' texts, empty for none.
  static absl::StatusOr<ChatFormat> Create(const std::string& chat_template, const std::string& bos,
                                           const std::string& eos);

  // The prompt, up to where the assistant's answer begins. kInvalidArgument, naming the field
  // "messages[i].role", for a role that is unknown, out of order, or not of this format.
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages) const;

  // For instance "chatml".
  std::string name() const { return style_.name; }

 private:
  ChatFormat(ChatStyle style, std::string bos, std::string eos);

  absl::Status Validate(std::span<const ChatMessage> messages) const;
  std::string RenderUser(const std::string& content, const std::string* system) const;
  std::string RenderAssistant(const std::string& content, bool shows_thinking, bool is_last) const;
  std::string RenderSystem(const std::string& content, bool is_first) const;

  ChatStyle style_;
  std::string bos_;
  std::string eos_;
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_CHAT_FORMAT_H_
