// tokenizer.json, and text through it and back. The input begins with a file, or with the number of
// one of the files below; then come text and ids.
//
// Whatever a file says, encoding and decoding end; ids have tokens; decoded text is UTF-8, and is
// the same in pieces as in one. A byte-level tokenizer with all bytes gives every text back.
#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/tokenizer/byte_level.h"
#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/utf8.h"
#include "tests/fuzz/fuzz_input.h"

namespace baton {
namespace {

constexpr size_t kFileBytesMax = 1 << 16;
// Tokens are kept by id. Greater ones cost memory, which is bounded by BpeModel::kIdMax, and time.
constexpr TokenId kIdMax = 1 << 16;

// Spelled in GPT-2's alphabet.
std::string Spelled(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes) AppendUtf8(ByteLevelCharacter(static_cast<uint8_t>(byte)), &token);
  return token;
}

Json ByteLevelFile(const char* regex, bool ignore_merges) {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[Spelled(std::string(1, static_cast<char>(byte)))] = byte;
  }
  Json merges = Json::array();
  const auto merge = [&](const char* left, const char* right) {
    merges.push_back(Json::array({Spelled(left), Spelled(right)}));
    vocabulary.emplace(Spelled(absl::StrCat(left, right)), vocabulary.size());
  };
  merge("h", "e"), merge("l", "l"), merge("he", "ll"), merge(" ", " "), merge("  ", "  ");
  merge("a", "a"), merge("aa", "aa"), merge("aaaa", "a"), merge("\xC3", "\xA9"), merge(" ", "a");
  merge("ell", "o"), merge("e", "ll");
  Json pre_tokenizer = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  if (regex != nullptr) {
    const Json split = {
        {"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
    pre_tokenizer["use_regex"] = false;
    pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", {split, pre_tokenizer}}};
  }
  return {{"added_tokens", {{{"id", 300}, {"content", "<|end|>"}, {"special", true}}}},
          {"pre_tokenizer", pre_tokenizer},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocabulary},
            {"merges", merges},
            {"ignore_merges", ignore_merges}}}};
}

struct Known {
  std::unique_ptr<Tokenizer> tokenizer;
  bool gives_back;  // Every text.
};

const std::array<Known, 3>& KnownTokenizers() {
  // Llama 3's pattern, without the numbers.
  static const char* const kRegex =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
      "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  static const char* const kSentencePiece = R"({
    "added_tokens": [{"id": 1, "content": "<s>", "special": true},
                     {"id": 2, "content": "</s>", "special": true, "rstrip": true},
                     {"id": 9, "content": "[W]", "single_word": true, "lstrip": true}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>",
      "vocab": {"<unk>": 0, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "a": 6, "▁a": 7, "aa": 8, "<0x0A>": 10},
      "merges": ["▁ a", "a a"]}})";
  static const std::array<Known, 3> known = [] {
    const auto make = [](const Json& file, bool gives_back) {
      return Known{Tokenizer::Create(file, Json()).value(), gives_back};
    };
    return std::array<Known, 3>{make(ByteLevelFile(nullptr, false), true),
                                make(ByteLevelFile(kRegex, true), true),
                                make(Json::parse(kSentencePiece), false)};
  }();
  return known;
}

bool IsUtf8(const std::string& text) { return ValidUtf8Prefix(text) == text.size(); }

void CheckDecoding(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  for (const bool skips : {false, true}) {
    const std::string whole = tokenizer.Decode(ids, skips);
    BATON_CHECK(IsUtf8(whole));
    IncrementalDecoder decoder(&tokenizer, {.skip_special_tokens = skips});
    std::string pieces;
    for (const TokenId id : ids) {
      const std::string piece = decoder.Push(id);
      BATON_CHECK(IsUtf8(piece));
      pieces += piece;
    }
    BATON_CHECK(pieces + decoder.Flush() == whole);
  }
}

void CheckText(const Known& known, const std::string& text) {
  const Tokenizer& tokenizer = *known.tokenizer;
  for (const bool adds : {false, true}) {
    const absl::StatusOr<std::vector<TokenId>> ids = tokenizer.Encode(text, adds);
    if (!ids.ok()) {
      BATON_CHECK(!known.gives_back || !IsUtf8(text));
      continue;
    }
    BATON_CHECK(IsUtf8(text));
    for (const TokenId id : *ids) BATON_CHECK(tokenizer.HasToken(id));
    CheckDecoding(tokenizer, *ids);
    if (known.gives_back) BATON_CHECK(tokenizer.Decode(*ids, false) == text);
  }
}

bool HasGreatIds(const Json& file) {
  const auto is_great = [](const Json& id) { return id.is_number() && id.get<double>() > kIdMax; };
  const Json* model = FindField(file, "model");
  const Json* vocabulary = model != nullptr ? FindField(*model, "vocab") : nullptr;
  if (vocabulary != nullptr && std::any_of(vocabulary->begin(), vocabulary->end(), is_great)) {
    return true;
  }
  const Json* added = FindField(file, "added_tokens");
  if (added == nullptr) return false;
  return std::any_of(added->begin(), added->end(), [&is_great](const Json& token) {
    const Json* id = FindField(token, "id");
    return id != nullptr && is_great(*id);
  });
}

// Nothing if the bytes are no tokenizer.json that can be used.
Known FromFile(const std::string& text, const std::string& config) {
  const absl::StatusOr<Json> file = ParseJson(text, "input");
  if (text.size() > kFileBytesMax || !file.ok() || HasGreatIds(*file)) return {};
  const absl::StatusOr<Json> settings = ParseJson(config, "config");
  auto tokenizer = Tokenizer::Create(*file, settings.ok() ? *settings : Json());
  if (!tokenizer.ok()) return {};
  return {*std::move(tokenizer), false};
}

void Run(FuzzInput input) {
  // '{', as any tokenizer.json, or which known one.
  const uint8_t first = input.Byte();
  Known loaded;
  if (first == '{') {
    const std::string file = absl::StrCat("{", input.Until('\0'));
    loaded = FromFile(file, input.Until('\0'));
    if (loaded.tokenizer == nullptr) return;
  }
  const auto& known = KnownTokenizers();
  const Known& chosen = loaded.tokenizer != nullptr ? loaded : known[first % known.size()];
  const std::string text = input.Until('\0');
  CheckText(chosen, text);
  std::vector<TokenId> ids;
  while (!input.empty()) ids.push_back(input.Byte() | input.Below(2) << 8);
  CheckDecoding(*chosen.tokenizer, ids);
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::Run(baton::FuzzInput(data, size));
  return 0;
}
