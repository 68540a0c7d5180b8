// Chat templates, and conversations in the formats that are known. Rendering shows every message of
// a user; what it refuses, it says why. And stop strings: found exactly where a plain search does.
#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/tokenizer/chat_format.h"
#include "common/tokenizer/stop_strings.h"
#include "common/tokenizer/utf8.h"
#include "tests/fuzz/fuzz_input.h"

namespace baton {
namespace {

constexpr std::array kTemplates = {"chatml",  "gemma",   "gemma-3",    "llama-2",   "llama-3",
                                   "mistral", "phi-3.5", "mistral-v3", "llama-3.1", "qwen3"};

const std::vector<ChatFormat>& KnownFormats() {
  static const std::vector<ChatFormat> formats = [] {
    std::vector<ChatFormat> loaded;
    for (const char* name : kTemplates) {
      std::ifstream file(absl::StrCat("tests/goldens/chat/templates/", name, ".jinja"));
      const std::string text{std::istreambuf_iterator<char>(file), {}};
      loaded.push_back(ChatFormat::Create(text, "<s>", "</s>").value());
    }
    return loaded;
  }();
  return formats;
}

// Without the white space that a format may take away. Empty where Unicode's might be among it.
std::string Trimmed(const std::string& text) {
  static constexpr const char* kSpace = " \t\n\v\f\r\x1C\x1D\x1E\x1F";
  if (std::any_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; })) return "";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

void CheckRendering(const ChatFormat& format, FuzzInput& input) {
  static constexpr std::array kRoles = {"user", "assistant", "system", "tool"};
  std::vector<ChatMessage> messages;
  while (!input.empty()) {
    const char* role = kRoles[input.Below(kRoles.size())];
    messages.push_back({role, input.Until('\0')});
  }
  const absl::StatusOr<std::string> prompt = format.Render(messages);
  if (!prompt.ok()) {
    BATON_CHECK(absl::IsInvalidArgument(prompt.status()));
    return;
  }
  for (const ChatMessage& message : messages) {
    if (message.role == "user")
      BATON_CHECK(prompt->find(Trimmed(message.content)) != std::string::npos);
  }
}

// Stop strings by the plainest search: the end that comes first, and of those the longest string.
struct Found {
  size_t begin = std::string::npos;
  size_t length = 0;
};
Found Search(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    Found found;
    for (const std::string& stop : stops) {
      if (stop.size() > found.length && stop.size() <= end &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        found = {end - stop.size(), stop.size()};
      }
    }
    if (found.length > 0) return found;
  }
  return {};
}

void CheckStops(FuzzInput& input) {
  std::vector<std::string> stops;
  for (uint32_t count = input.Below(5); count > 0; --count) stops.push_back(input.Until('\0'));
  absl::StatusOr<StopStringMatcher> matcher = StopStringMatcher::Create(stops);
  BATON_CHECK(matcher.ok() == StopStringMatcher::Validate(stops).ok());
  if (!matcher.ok()) return;
  std::string text, shown;
  while (!input.empty() && !matcher->stopped()) {
    const std::string piece = input.Bytes(1 + input.Below(4));
    text += piece;
    shown += matcher->Push(piece);
  }
  const Found found = Search(text, stops);
  BATON_CHECK(matcher->stopped() == (found.begin != std::string::npos));
  if (!matcher->stopped()) {
    BATON_CHECK(shown + matcher->Flush() == text);
    return;
  }
  BATON_CHECK(shown == text.substr(0, found.begin));
  BATON_CHECK(stops[matcher->matched()] == text.substr(found.begin, found.length));
}

void Run(FuzzInput input) {
  switch (input.Below(3)) {
    case 0: {
      const auto format = ChatFormat::Create(input.Until('\0'), "<s>", "</s>");
      if (format.ok()) CheckRendering(*format, input);
      break;
    }
    case 1:
      CheckRendering(KnownFormats()[input.Below(kTemplates.size())], input);
      break;
    case 2:
      CheckStops(input);
      break;
  }
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::Run(baton::FuzzInput(data, size));
  return 0;
}
