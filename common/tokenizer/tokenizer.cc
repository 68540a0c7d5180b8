#include "common/tokenizer/tokenizer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr int kDepthMax = 8;
constexpr size_t kTemplateIdsMax = 64;

absl::Status CheckCount(const std::vector<TokenId>& ids, size_t ids_max) {
  if (ids.size() <= ids_max) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("text: more than ", ids_max, " tokens"));
}

}  // namespace

// A class of transformers that puts its own template in the place of tokenizer.json's: BOS and EOS,
// as add_bos_token and add_eos_token say. The rule is that of transformers 4, with which published
// checkpoints were made; version 5 goes by tokenizer.json alone, and loses the BOS of some of them.
struct Tokenizer::OwnTemplate {
  std::string_view class_name;  // Without the "Fast" that it may end in.
  // Where the configuration does not say.
  const char* bos;
  const char* eos;
  bool adds_bos;
};

// Working memory of one Encode call.
struct Tokenizer::Words {
  std::deque<std::string> storage;
  std::vector<std::string_view> words;
  BpeModel::Scratch scratch;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  BATON_ASSIGN_OR_RETURN(const Json tokenizer,
                         ReadJsonFile(model_dir + "/tokenizer.json", kFileBytesMax));
  absl::StatusOr<Json> config = ReadJsonFile(model_dir + "/tokenizer_config.json", kFileBytesMax);
  if (absl::IsNotFound(config.status())) config = Json();
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Create(tokenizer, *config);
  if (loaded.ok()) return loaded;
  return absl::Status(loaded.status().code(),
                      absl::StrCat(model_dir, ": ", loaded.status().message()));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const Json& tokenizer,
                                                             const Json& config) {
  const Json* model = FindField(tokenizer, "model");
  if (model == nullptr) return absl::InvalidArgumentError("tokenizer.json: there is no model");
  // First of all: other kinds have normalizers and decoders of their own, and those are not to
  // blame.
  BATON_RETURN_IF_ERROR(BpeModel::CheckType(*model));
  std::unique_ptr<Tokenizer> result(new Tokenizer());
  BATON_ASSIGN_OR_RETURN(result->normalizer_,
                         Normalizer::Create(FindField(tokenizer, "normalizer")));
  BATON_ASSIGN_OR_RETURN(result->pre_tokenizer_,
                         PreTokenizer::Create(FindField(tokenizer, "pre_tokenizer")));
  BATON_ASSIGN_OR_RETURN(result->model_,
                         BpeModel::Create(*model, result->pre_tokenizer_->is_byte_level()));
  BATON_ASSIGN_OR_RETURN(result->decoder_, TokenDecoder::Create(FindField(tokenizer, "decoder")));
  result->model_->ForEachToken([&](TokenId id, const std::string& token) {
    result->decoder_.SetToken(id, token, /*is_special=*/false);
  });
  BATON_RETURN_IF_ERROR(result->LoadAddedTokens(tokenizer));
  BATON_RETURN_IF_ERROR(result->LoadConfig(config));
  BATON_ASSIGN_OR_RETURN(const OwnTemplate* own, FindOwnTemplate(config));
  if (own != nullptr) {
    BATON_RETURN_IF_ERROR(result->ApplyOwnTemplate(*own, config));
  } else if (const Json* spec = FindField(tokenizer, "post_processor")) {
    BATON_RETURN_IF_ERROR(result->LoadPostProcessor(*spec, "post_processor", 0));
  }
  return result;
}

absl::Status Tokenizer::LoadAddedTokens(const Json& spec) {
  BATON_ASSIGN_OR_RETURN(const std::vector<AddedToken> tokens,
                         ParseAddedTokens(FindField(spec, "added_tokens")));
  for (const AddedToken& token : tokens) {
    const std::optional<TokenId> in_vocabulary = model_->Find(token.content);
    if (in_vocabulary.has_value() && *in_vocabulary != token.id) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: added token \"", token.content, "\" has id ", token.id,
                       ", but the vocabulary gives it ", *in_vocabulary));
    }
    if (!in_vocabulary.has_value() && decoder_.Has(token.id)) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added token \"",
                                                     token.content, "\" has id ", token.id,
                                                     ", which belongs to another token"));
    }
    if (!added_ids_.emplace(token.content, token.id).second) continue;
    decoder_.SetToken(token.id, token.content, token.is_special);
    if (!token.is_normalized) {
      raw_tokens_.Add(token.content, token);
      continue;
    }
    BATON_ASSIGN_OR_RETURN(const std::string pattern, normalizer_->Apply(token.content));
    if (!pattern.empty()) normalized_tokens_.Add(pattern, token);
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::LoadPostProcessor(const Json& spec, const std::string& where, int depth) {
  BATON_ASSIGN_OR_RETURN(const std::string type, StringField(spec, "type", where));
  if (depth > kDepthMax) return Unsupported(where, "so deep a sequence");
  if (type == "ByteLevel") return absl::OkStatus();  // It moves offsets, not ids.
  if (type == "TemplateProcessing") return LoadTemplate(spec, where);
  if (type == "Sequence") {
    const Json* parts = FindField(spec, "processors");
    if (parts == nullptr || !parts->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".processors: expected a list"));
    }
    for (size_t i = 0; i < parts->size(); ++i) {
      BATON_RETURN_IF_ERROR(
          LoadPostProcessor((*parts)[i], absl::StrCat(where, ".processors[", i, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  return Unsupported(where, absl::StrCat("type \"", type, "\""));
}

absl::Status Tokenizer::LoadTemplate(const Json& spec, const std::string& where) {
  const Json* single = FindField(spec, "single");
  const Json* special = FindField(spec, "special_tokens");
  if (single == nullptr || !single->is_array()) {
    return Unsupported(where + ".single", "anything but a list");
  }
  std::vector<TokenId> before;
  std::vector<TokenId> after;
  int sequence_count = 0;
  for (const Json& piece : *single) {
    if (FindField(piece, "Sequence") != nullptr) {
      ++sequence_count;
      continue;
    }
    const Json* token = FindField(piece, "SpecialToken");
    BATON_ASSIGN_OR_RETURN(
        const std::string name,
        StringField(token != nullptr ? *token : Json(), "id", where + ".single: SpecialToken"));
    const Json* entry = special != nullptr ? FindField(*special, name.c_str()) : nullptr;
    const Json* ids = entry != nullptr ? FindField(*entry, "ids") : nullptr;
    if (ids == nullptr || !ids->is_array() || ids->size() > kTemplateIdsMax) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokenizer.json: ", where, ": special token \"", name, "\" has no list of ids"));
    }
    std::vector<TokenId>& side = sequence_count == 0 ? before : after;
    for (const Json& id : *ids) {
      const std::optional<TokenId> number = WholeNumber(id, BpeModel::kIdMax);
      if (!number.has_value() || !decoder_.Has(*number)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tokenizer.json: ", where, ": special token \"", name, "\" has an unknown id"));
      }
      side.push_back(*number);
    }
  }
  if (sequence_count != 1 || prefix_.size() + before.size() > kTemplateIdsMax ||
      suffix_.size() + after.size() > kTemplateIdsMax) {
    return Unsupported(where + ".single", "a template that has not the text once");
  }
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
  return absl::OkStatus();
}

absl::StatusOr<const Tokenizer::OwnTemplate*> Tokenizer::FindOwnTemplate(const Json& config) {
  static constexpr OwnTemplate kTemplates[] = {
      {"LlamaTokenizer", "<s>", "</s>", true},
      {"CodeLlamaTokenizer", "<s>", "</s>", true},
      {"GemmaTokenizer", "<bos>", "<eos>", true},
      {"CohereTokenizer", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", true},
      {"GPTNeoXTokenizer", "<|endoftext|>", "<|endoftext|>", false},
  };
  if (FindField(config, "tokenizer_class") == nullptr) return nullptr;
  BATON_ASSIGN_OR_RETURN(const std::string text,
                         StringField(config, "tokenizer_class", "tokenizer_config.json"));
  std::string_view name = text;
  if (name.ends_with("Fast")) name.remove_suffix(4);
  for (const OwnTemplate& own : kTemplates) {
    if (own.class_name == name) return &own;
  }
  return nullptr;
}

absl::Status Tokenizer::ApplyOwnTemplate(const OwnTemplate& own, const Json& config) {
  const auto add = [&](const char* flag, bool adds, const char* key, const char* name,
                       std::vector<TokenId>* side) -> absl::Status {
    // Null counts as false, other than a flag that is not there.
    if (config.contains(flag)) {
      BATON_ASSIGN_OR_RETURN(adds, BoolField(config, flag, false, "tokenizer_config.json"));
    }
    if (!adds) return absl::OkStatus();
    BATON_ASSIGN_OR_RETURN(const std::optional<TokenId> id, NamedToken(config, key, name));
    if (!id.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer_config.json: ", flag, " asks for ", key, ", which is null"));
    }
    side->push_back(*id);
    return absl::OkStatus();
  };
  BATON_RETURN_IF_ERROR(add("add_bos_token", own.adds_bos, "bos_token", own.bos, &prefix_));
  return add("add_eos_token", false, "eos_token", own.eos, &suffix_);
}

// Empty for null; `absent` is the name where there is none, and may be null, too.
absl::StatusOr<std::optional<TokenId>> Tokenizer::NamedToken(const Json& config, const char* key,
                                                             const char* absent) const {
  std::string content;
  const Json* field = FindField(config, key);
  if (field == nullptr) {
    if (absent == nullptr || config.contains(key)) return std::nullopt;
    content = absent;
  } else if (field->is_string()) {
    content = field->get<std::string>();
  } else {
    BATON_ASSIGN_OR_RETURN(
        content, StringField(*field, "content", absl::StrCat("tokenizer_config.json: ", key)));
  }
  const std::optional<TokenId> id = Find(content);
  if (!id.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer_config.json: ", key, " \"", content,
                                                   "\" is not in the vocabulary"));
  }
  return id;
}

absl::Status Tokenizer::LoadConfig(const Json& config) {
  for (const char* key : {"bos_token", "eos_token"}) {
    BATON_RETURN_IF_ERROR(NamedToken(config, key, nullptr).status());
  }
  BATON_ASSIGN_OR_RETURN(cleans_up_spaces_, BoolField(config, "clean_up_tokenization_spaces", false,
                                                      "tokenizer_config.json"));
  return absl::OkStatus();
}

std::optional<TokenId> Tokenizer::Find(const std::string& token) const {
  const auto added = added_ids_.find(token);
  if (added != added_ids_.end()) return added->second;
  return model_->Find(token);
}

std::string Tokenizer::TokenBytes(TokenId id) const {
  return decoder_.Has(id) ? decoder_.Piece(id) : "";
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(const std::string& text,
                                                       bool add_special_tokens,
                                                       size_t ids_max) const {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: ", text.size(), " bytes, more than ", kTextBytesMax));
  }
  if (const size_t valid = ValidUtf8Prefix(text); valid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text: not UTF-8 at byte ", valid));
  }
  std::vector<TokenId> ids;
  if (add_special_tokens) ids = prefix_;
  Words words;
  for (const AddedTokenMatcher::Part& part : raw_tokens_.Split(text)) {
    BATON_RETURN_IF_ERROR(CheckCount(ids, ids_max));
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
      continue;
    }
    const bool is_at_start = part.text.data() == text.data();
    BATON_RETURN_IF_ERROR(EncodeText(part.text, is_at_start, ids_max, &words, &ids));
  }
  if (add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  BATON_RETURN_IF_ERROR(CheckCount(ids, ids_max));
  return ids;
}

absl::Status Tokenizer::EncodeText(std::string_view text, bool is_at_start, size_t ids_max,
                                   Words* words, std::vector<TokenId>* ids) const {
  BATON_ASSIGN_OR_RETURN(const std::string normalized, normalizer_->Apply(std::string(text)));
  for (const AddedTokenMatcher::Part& part : normalized_tokens_.Split(normalized)) {
    if (part.token != nullptr) {
      ids->push_back(part.token->id);
      continue;
    }
    words->words.clear();
    words->storage.clear();
    const PreTokenizer::Piece piece = {part.text,
                                       is_at_start && part.text.data() == normalized.data()};
    BATON_RETURN_IF_ERROR(pre_tokenizer_->Split(piece, &words->storage, &words->words));
    for (const std::string_view word : words->words) {
      BATON_RETURN_IF_ERROR(model_->Encode(word, &words->scratch, ids));
      BATON_RETURN_IF_ERROR(CheckCount(*ids, ids_max));
    }
  }
  return absl::OkStatus();
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, bool skip_special_tokens) const {
  IncrementalDecoder decoder(this, {.skip_special_tokens = skip_special_tokens});
  std::string text;
  for (const TokenId id : ids) text += decoder.Push(id);
  text += decoder.Flush();
  return text;
}

}  // namespace baton
