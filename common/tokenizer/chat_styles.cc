#include "common/tokenizer/chat_styles.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <utility>
#include <vector>

namespace baton {
namespace {

// A Jinja template as a list of what it says, without how it is laid out.
struct Expressions {
  std::vector<std::string> outputs;     // {{ … }}, and text outside of tags as a literal.
  std::vector<std::string> statements;  // {% … %}
};

bool Contains(const std::vector<std::string>& list, const std::string& wanted) {
  return std::find(list.begin(), list.end(), wanted) != list.end();
}

void ReplaceEach(std::string* text, std::string_view from, std::string_view to) {
  for (size_t at = text->find(from); at != std::string::npos;
       at = text->find(from, at + to.size())) {
    text->replace(at, from.size(), to);
  }
}

// One spelling for each expression: no white space but in literals, literals in single quotes with
// \n for a line end and adjacent ones joined, message['role'] for message.role.
std::string Canonical(std::string_view expression) {
  std::string out;
  std::string code;  // Since the last literal.
  const auto end_code = [&] {
    for (const char* field : {"role", "content"}) {
      ReplaceEach(&code, std::string(".") + field, std::string("['") + field + "']");
    }
    out += code;
    code.clear();
  };
  char quote = 0;
  for (size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (quote == 0) {
      if (c == '\'' || c == '"') {
        end_code();
        quote = c;
        out += '\'';
      } else if (std::isspace(static_cast<unsigned char>(c)) == 0) {
        code += c;
      }
    } else if (c == '\\' && i + 1 < expression.size()) {
      if (expression[++i] != '"') out += '\\';
      out += expression[i];
    } else if (c == quote) {
      quote = 0;
      out += '\'';
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\'') {
      out += "\\'";
    } else {
      out += c;
    }
  }
  end_code();
  ReplaceEach(&out, "'+'", "");
  return out;
}

// What a string literal of Canonical() means.
std::string Unescape(std::string_view literal) {
  std::string out;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      out += literal[i];
      continue;
    }
    const char c = literal[++i];
    out += c == 'n' ? '\n' : c == 't' ? '\t' : c;
  }
  return out;
}

// The white space that Jinja leaves of the text between two tags, as chat templates are rendered
// (trim_blocks and lstrip_blocks). `before` and `after` are the tags' kinds: '{' for an output,
// '%' and '#' for blocks and comments, 0 for the template's ends.
std::string Between(std::string text, char before, bool before_strips, char after,
                    bool after_strips) {
  constexpr const char* kSpace = " \t\n\r\f\v";
  if (before_strips) {
    text.erase(0, std::min(text.find_first_not_of(kSpace), text.size()));
  } else if ((before == '%' || before == '#') && !text.empty() && text[0] == '\n') {
    text.erase(0, 1);
  }
  if (after == 0 && !text.empty() && text.back() == '\n') text.pop_back();
  if (after_strips) {
    text.erase(text.find_last_not_of(kSpace) + 1);
  } else if (after == '%' || after == '#') {
    const size_t line = text.rfind('\n');
    const size_t begin = line == std::string::npos ? 0 : line + 1;
    const bool begins_line = line != std::string::npos || before != '{';
    if (begins_line && text.find_first_not_of(" \t", begin) == std::string::npos) text.erase(begin);
  }
  return text;
}

Expressions Parse(const std::string& text) {
  Expressions result;
  size_t at = 0;
  char before = 0;
  bool before_strips = false;
  while (at < text.size()) {
    size_t open = text.find('{', at);
    while (open + 1 < text.size() && open != std::string::npos &&
           std::string_view("{%#").find(text[open + 1]) == std::string_view::npos) {
      open = text.find('{', open + 1);
    }
    const bool at_end = open == std::string::npos || open + 1 >= text.size();
    const char kind = at_end ? '\0' : text[open + 1];
    const size_t begin = at_end ? text.size() : open + 2;
    const bool strips = begin < text.size() && text[begin] == '-';
    const std::string between = Between(text.substr(at, (at_end ? text.size() : open) - at), before,
                                        before_strips, kind, strips);
    if (!between.empty()) {
      std::string literal = between;
      ReplaceEach(&literal, "'", "\\'");
      result.outputs.push_back(Canonical("'" + literal + "'"));
    }
    if (at_end) break;
    const std::string close = kind == '{' ? "}}" : std::string(1, kind) + "}";
    const size_t end = text.find(close, begin);
    if (end == std::string::npos) break;
    before = kind;
    before_strips = end > begin && text[end - 1] == '-';
    const size_t from = begin + (strips ? 1 : 0);
    const size_t to = before_strips && end > from ? end - 1 : end;
    const std::string expression = Canonical(std::string_view(text).substr(from, to - from));
    if (kind == '{') result.outputs.push_back(expression);
    if (kind == '%') result.statements.push_back(expression);
    at = end + 2;
  }
  return result;
}

// A published template, by what it must say. Literals are spelled as Canonical() spells them.
struct KnownTemplate {
  ChatStyle style;
  std::vector<std::string> outputs;           // All of them must be there.
  std::vector<std::string> optional_outputs;  // And no others but these, unless has_tools.
  std::vector<std::string> statements;        // All of them must be there.
  bool has_tools = false;  // A long template, of which we render what it says without tools.
};

constexpr const char* kChatMlTurn =
    "'<|im_start|>'+message['role']+'\\n'+message['content']+'<|im_end|>\\n'";
constexpr const char* kChatMlPrompt = "'<|im_start|>assistant\\n'";
constexpr const char* kChatMlSystem =
    "'<|im_start|>system\\n'+messages[0]['content']+'<|im_end|>\\n'";
constexpr const char* kLlama3Turn =
    "'<|start_header_id|>'+message['role']+'<|end_header_id|>\\n\\n'+message['content']|trim+"
    "'<|eot_id|>'";
constexpr const char* kLlama3Prompt = "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'";
constexpr const char* kIfPrompt = "ifadd_generation_prompt";

ChatStyle ChatMlStyle(const char* name) {
  return {.name = name,
          .system_prefix = "<|im_start|>system\n",
          .system_suffix = "<|im_end|>\n",
          .user_prefix = "<|im_start|>user\n",
          .user_suffix = "<|im_end|>\n",
          .assistant_prefix = "<|im_start|>assistant\n",
          .assistant_suffix = "<|im_end|>\n",
          .generation_prompt = "<|im_start|>assistant\n"};
}

void AddChatMl(std::vector<KnownTemplate>* known) {
  known->push_back({ChatMlStyle("chatml"), {kChatMlTurn, kChatMlPrompt}, {}, {kIfPrompt}, false});
  known->push_back({ChatMlStyle("qwen2.5"),
                    {kChatMlTurn, kChatMlPrompt, kChatMlSystem},
                    {},
                    {"iftools", kIfPrompt, "ifmessages[0]['role']=='system'"},
                    true});
  ChatStyle qwen3 = ChatMlStyle("qwen3");
  qwen3.hides_thinking = true;
  known->push_back(
      {qwen3,
       {("'<|im_start|>'+message['role']+'\\n<think>\\n'+reasoning_content.strip('\\n')+"
         "'\\n</think>\\n\\n'+content.lstrip('\\n')"),
        "'<|im_start|>'+message['role']+'\\n'+content", kChatMlPrompt, kChatMlSystem,
        "'<|im_end|>\\n'", "'<think>\\n\\n</think>\\n\\n'"},
       {},
       {"iftools", kIfPrompt, "ifenable_thinkingisdefinedandenable_thinkingisfalse",
        "ifloop.index0>ns.last_query_index", "ifloop.lastor(notloop.lastandreasoning_content)"},
       true});
}

ChatStyle Llama3Style(const char* name) {
  const auto header = [](const char* role) {
    return std::string("<|start_header_id|>") + role + "<|end_header_id|>\n\n";
  };
  return {.name = name,
          .system_prefix = header("system"),
          .system_suffix = "<|eot_id|>",
          .user_prefix = header("user"),
          .user_suffix = "<|eot_id|>",
          .assistant_prefix = header("assistant"),
          .assistant_suffix = "<|eot_id|>",
          .generation_prompt = header("assistant"),
          .begins_with_bos = true,
          .trims_system = true,
          .trims_user = true,
          .trims_assistant = true};
}

void AddLlama3(std::vector<KnownTemplate>* known) {
  known->push_back({Llama3Style("llama-3"),
                    {"content", kLlama3Prompt},
                    {},
                    {std::string("setcontent=") + kLlama3Turn, "setcontent=bos_token+content"},
                    false});
  ChatStyle dated = Llama3Style("llama-3.1");
  dated.late_system_prefix = dated.system_prefix;
  dated.system_prefix += "Cutting Knowledge Date: December 2023\nToday Date: ";
  dated.default_system = "";
  known->push_back({dated,
                    {kLlama3Turn, kLlama3Prompt, "bos_token",
                     "'<|start_header_id|>system<|end_header_id|>\\n\\n'",
                     "'Cutting Knowledge Date: December 2023\\n'",
                     "'Today Date: '+date_string+'\\n\\n'", "system_message", "'<|eot_id|>'"},
                    {},
                    {kIfPrompt, "setsystem_message=messages[0]['content']|trim"},
                    true});
}

void AddLlama2(std::vector<KnownTemplate>* known) {
  known->push_back(
      {{.name = "llama-2",
        .system = ChatStyle::System::kFirstUser,
        .system_prefix = "<<SYS>>\n",
        .system_suffix = "\n<</SYS>>\n\n",
        .user_prefix = "[INST] ",
        .user_suffix = " [/INST]",
        .assistant_prefix = " ",
        .assistant_suffix = " ",
        .begins_user_with_bos = true,
        .ends_assistant_with_eos = true,
        .trims_user = true,
        .trims_assistant = true,
        .alternates = true},
       {"bos_token+'[INST] '+content.strip()+' [/INST]'", "' '+content.strip()+' '+eos_token"},
       {"'<<SYS>>\\n'+content.strip()+'\\n<</SYS>>\\n\\n'"},
       {"setcontent='<<SYS>>\\n'+system_message+'\\n<</SYS>>\\n\\n'+message['content']",
        "setsystem_message=messages[0]['content']"},
       false});
}

void AddMistral(std::vector<KnownTemplate>* known) {
  const ChatStyle base = {.name = "mistral",
                          .system = ChatStyle::System::kRefused,
                          .system_suffix = "\n\n",
                          .user_prefix = "[INST] ",
                          .user_suffix = " [/INST]",
                          .ends_assistant_with_eos = true,
                          .alternates = true};
  known->push_back({base,
                    {"'[INST] '+message['content']+' [/INST]'", "message['content']+eos_token"},
                    {},
                    {},
                    false});
  ChatStyle spaced = base;
  spaced.ends_assistant_with_space = true;
  known->push_back({spaced,
                    {"'[INST] '+message['content']+' [/INST]'", "message['content']+eos_token+' '"},
                    {},
                    {},
                    false});
  ChatStyle v1 = base;
  v1.name = "mistral-v1";
  v1.system = ChatStyle::System::kFirstUser;
  v1.user_prefix = " [INST] ";
  v1.assistant_prefix = " ";
  known->push_back(
      {v1,
       {"' [INST] '+system_message+'\\n\\n'+message['content']+' [/INST]'",
        "' [INST] '+message['content']+' [/INST]'", "' '+message['content']+eos_token"},
       {},
       {"ifloop.firstandsystem_messageisdefined"},
       false});
  ChatStyle v3 = base;
  v3.name = "mistral-v3";
  v3.system = ChatStyle::System::kLastUser;
  v3.user_suffix = "[/INST]";
  v3.assistant_prefix = " ";
  v3.trims_assistant = true;
  known->push_back(
      {v3,
       {"'[INST] '+system_message+'\\n\\n'+message['content']+'[/INST]'",
        "'[INST] '+message['content']+'[/INST]'", "' '+message['content']|trim+eos_token"},
       {},
       {"ifloop.lastandsystem_messageisdefined"},
       true});
  ChatStyle tekken = v3;
  tekken.name = "mistral-v3-tekken";
  tekken.user_prefix = "[INST]";
  tekken.assistant_prefix = "";
  tekken.trims_assistant = false;
  known->push_back({tekken,
                    {"'[INST]'+system_message+'\\n\\n'+message['content']+'[/INST]'",
                     "'[INST]'+message['content']+'[/INST]'", "message['content']+eos_token"},
                    {},
                    {"ifloop.lastandsystem_messageisdefined"},
                    true});
}

void AddGemma(std::vector<KnownTemplate>* known) {
  const ChatStyle base = {.name = "gemma",
                          .system = ChatStyle::System::kRefused,
                          .user_prefix = "<start_of_turn>user\n",
                          .user_suffix = "<end_of_turn>\n",
                          .assistant_prefix = "<start_of_turn>model\n",
                          .assistant_suffix = "<end_of_turn>\n",
                          .generation_prompt = "<start_of_turn>model\n",
                          .trims_user = true,
                          .trims_assistant = true,
                          .alternates = true};
  known->push_back({base,
                    {"'<start_of_turn>'+role+'\\n'+message['content']|trim+'<end_of_turn>\\n'",
                     "'<start_of_turn>model\\n'"},
                    {},
                    {kIfPrompt, "setrole='model'"},
                    false});
  ChatStyle third = base;
  third.name = "gemma-3";
  third.system = ChatStyle::System::kFirstUser;
  third.system_suffix = "\n\n";
  known->push_back(
      {third,
       {"'<start_of_turn>'+role+'\\n'+(first_user_prefixifloop.firstelse'')",
        "message['content']|trim", "'<end_of_turn>\\n'", "'<start_of_turn>model\\n'"},
       {"item['text']|trim", "'<start_of_image>'"},
       {kIfPrompt, "setrole='model'", "setfirst_user_prefix=messages[0]['content']+'\\n\\n'"},
       false});
}

void AddPhi3(std::vector<KnownTemplate>* known) {
  known->push_back({{.name = "phi-3",
                     .system = ChatStyle::System::kRefused,
                     .user_prefix = "<|user|>\n",
                     .user_suffix = "<|end|>\n<|assistant|>\n",
                     .assistant_suffix = "<|end|>\n"},
                    {"'<|user|>\\n'+message['content']+'<|end|>\\n<|assistant|>\\n'",
                     "message['content']+'<|end|>\\n'"},
                    {},
                    {},
                    false});
  const ChatStyle turns = {.name = "phi-3",
                           .system_prefix = "<|system|>\n",
                           .system_suffix = "<|end|>\n",
                           .user_prefix = "<|user|>\n",
                           .user_suffix = "<|end|>\n",
                           .assistant_prefix = "<|assistant|>\n",
                           .assistant_suffix = "<|end|>\n",
                           .generation_prompt = "<|assistant|>\n"};
  known->push_back(
      {turns,
       {"'<|'+message['role']+'|>\\n'+message['content']+'<|end|>\\n'", "'<|assistant|>\\n'"},
       {"eos_token"},
       {kIfPrompt},
       false});
  ChatStyle skipping = turns;
  skipping.skips_empty_system = true;
  known->push_back({skipping,
                    {"'<|system|>\\n'+message['content']+'<|end|>\\n'",
                     "'<|user|>\\n'+message['content']+'<|end|>\\n'",
                     "'<|assistant|>\\n'+message['content']+'<|end|>\\n'", "'<|assistant|>\\n'"},
                    {"eos_token"},
                    {kIfPrompt, "ifmessage['role']=='system'andmessage['content']"},
                    false});
}

// The text between `begin` and `end` where a literal is just that, else nothing.
std::optional<std::string> LiteralBetween(const std::string& expression, const std::string& begin,
                                          const std::string& end) {
  if (expression.size() < begin.size() + end.size() || expression.rfind(begin, 0) != 0 ||
      expression.compare(expression.size() - end.size(), end.size(), end) != 0) {
    return std::nullopt;
  }
  const std::string literal =
      expression.substr(begin.size(), expression.size() - begin.size() - end.size());
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] == '\\') {
      ++i;
    } else if (literal[i] == '\'') {
      return std::nullopt;
    }
  }
  return Unescape(literal);
}

std::optional<std::string> DefaultSystem(const std::string& output) {
  return LiteralBetween(output, "'<|im_start|>system\\n", "<|im_end|>\\n'");
}

bool Matches(const KnownTemplate& known, const Expressions& expressions) {
  const auto has_output = [&](const std::string& s) { return Contains(expressions.outputs, s); };
  const auto has_statement = [&](const std::string& s) {
    return Contains(expressions.statements, s);
  };
  if (!std::all_of(known.outputs.begin(), known.outputs.end(), has_output) ||
      !std::all_of(known.statements.begin(), known.statements.end(), has_statement)) {
    return false;
  }
  if (known.has_tools) return true;
  return std::all_of(
      expressions.outputs.begin(), expressions.outputs.end(), [&](const std::string& output) {
        return Contains(known.outputs, output) || Contains(known.optional_outputs, output) ||
               output == "bos_token" || output.rfind("raise_exception(", 0) == 0 ||
               (known.style.name == std::string("chatml") && DefaultSystem(output).has_value());
      });
}

// Fills in what templates of one kind differ in. False when the template has something unexpected.
bool Complete(const Expressions& expressions, ChatStyle* style) {
  if (Contains(expressions.outputs, "bos_token")) style->begins_with_bos = true;
  for (const std::string& output : expressions.outputs) {
    if (style->hides_thinking) continue;
    const std::optional<std::string> system = DefaultSystem(output);
    if (!system.has_value()) continue;
    if (style->default_system.has_value() && style->default_system != system) return false;
    style->default_system = system;
  }
  const std::string name = style->name;
  const auto says = [&](const std::string& part) {
    return std::any_of(expressions.statements.begin(), expressions.statements.end(),
                       [&](const std::string& s) { return s.find(part) != std::string::npos; });
  };
  if (name == "chatml" && style->default_system.has_value()) {
    return says("loop.firstandmessages[0]['role']!='system'");
  }
  if (name == "llama-2") {
    // A default system message is built in, but must be switched off.
    return !says("setsystem_message='") || says("eliffalse==true");
  }
  if (name == "llama-3.1") {
    // The date is the one that the template names for where it cannot ask the clock: the same
    // prompt gives the same tokens on every day.
    for (const std::string& statement : expressions.statements) {
      if (auto date = LiteralBetween(statement, "setdate_string='", "'")) {
        style->system_prefix += *date + "\n\n";
        return true;
      }
    }
    return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<ChatStyle> RecogniseChatTemplate(const std::string& chat_template) {
  std::vector<KnownTemplate> known;
  AddChatMl(&known);
  AddLlama3(&known);
  AddLlama2(&known);
  AddMistral(&known);
  AddGemma(&known);
  AddPhi3(&known);
  const Expressions expressions = Parse(chat_template);
  for (const KnownTemplate& candidate : known) {
    if (!Matches(candidate, expressions)) continue;
    ChatStyle style = candidate.style;
    if (Complete(expressions, &style)) return style;
  }
  return absl::UnimplementedError(
      "chat: the model's chat_template is none that Baton knows (ChatML, Qwen, Llama 3, Llama 2, "
      "Mistral, Gemma, Phi-3)");
}

}  // namespace baton
