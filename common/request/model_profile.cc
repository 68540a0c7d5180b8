#include "common/request/model_profile.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/json_fields.h"

namespace baton {
namespace {

constexpr size_t kConfigBytesMax = 1 << 20;
constexpr int kVocabSizeMax = 1 << 24;
constexpr double kExtendedContextMax = 1 << 20;

// "eos_token_id": a number or a list of numbers; empty if absent.
absl::StatusOr<std::vector<TokenId>> EosTokenIds(const Json& config, const std::string& file,
                                                 uint32_t vocab_size) {
  std::vector<TokenId> ids;
  const Json* field = FindField(config, "eos_token_id");
  if (field == nullptr) return ids;
  const Json list = field->is_array() ? *field : Json::array({*field});
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": eos_token_id ", id.dump(), " is no token of a vocabulary of ", vocab_size));
    }
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

std::string Architecture(const Json& config) {
  const Json* list = FindField(config, "architectures");
  if (list == nullptr || !list->is_array() || list->empty() || !list->front().is_string())
    return "";
  return list->front().get<std::string>();
}

double NumberOr(const Json& object, const char* key, double absent) {
  const Json* field = FindField(object, key);
  return field != nullptr && field->is_number() ? field->get<double>() : absent;
}

// By what YaRN makes of a context, which the file often leaves at the original one. A worker, whose
// context must be the same, reads it more strictly (ModelConfig); tests compare the two.
double ExtendedContext(const Json& config, double context) {
  const Json* scaling = FindField(config, "rope_parameters");
  if (scaling == nullptr) scaling = FindField(config, "rope_scaling");
  if (scaling == nullptr) return context;
  const Json* type = FindField(*scaling, "rope_type");
  if (type == nullptr) type = FindField(*scaling, "type");
  // With such lists it is another extension of that name, which the file counts in.
  if (type == nullptr || *type != "yarn" || FindField(*scaling, "short_factor") != nullptr) {
    return context;
  }
  const char* const original_key = "original_max_position_embeddings";
  const double original = NumberOr(*scaling, original_key, NumberOr(config, original_key, context));
  const float factor = static_cast<float>(NumberOr(*scaling, "factor", context / original));
  return std::max(context, std::min(original * factor, kExtendedContextMax));
}

absl::StatusOr<uint32_t> ContextTokens(const Json& config, const std::string& architecture) {
  const bool gpt2 = architecture == "GPT2LMHeadModel";
  const char* const key = gpt2 ? "n_positions" : "max_position_embeddings";
  BATON_ASSIGN_OR_RETURN(
      const int context,
      IntField(config, key, static_cast<int>(ModelProfile::kContextTokensMax), "config.json"));
  if (context < 2) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", key, " must be at least 2"));
  }
  return static_cast<uint32_t>(ExtendedContext(config, context));
}

absl::Status LoadConfig(const std::string& directory, ModelProfile* model) {
  BATON_ASSIGN_OR_RETURN(const Json config,
                         ReadJsonFile(directory + "/config.json", kConfigBytesMax));
  BATON_ASSIGN_OR_RETURN(const int vocab_size,
                         IntField(config, "vocab_size", kVocabSizeMax, "config.json"));
  if (vocab_size == 0) {
    return absl::InvalidArgumentError("config.json: vocab_size must be at least 1");
  }
  model->vocab_size = static_cast<uint32_t>(vocab_size);
  model->architecture = Architecture(config);
  BATON_ASSIGN_OR_RETURN(model->context_tokens, ContextTokens(config, model->architecture));
  BATON_ASSIGN_OR_RETURN(model->eos_token_ids,
                         EosTokenIds(config, "config.json", model->vocab_size));
  const absl::StatusOr<Json> generation =
      ReadJsonFile(directory + "/generation_config.json", kConfigBytesMax);
  if (absl::IsNotFound(generation.status())) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(generation.status());
  BATON_ASSIGN_OR_RETURN(std::vector<TokenId> ids,
                         EosTokenIds(*generation, "generation_config.json", model->vocab_size));
  if (!ids.empty()) model->eos_token_ids = std::move(ids);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelProfile> ModelProfile::Load(const std::string& directory) {
  if (directory.empty()) {
    return absl::InvalidArgumentError("--model is required: the model's folder");
  }
  ModelProfile model;
  const std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  model.name = (path.has_filename() ? path : path.parent_path()).filename().string();
  BATON_RETURN_IF_ERROR(LoadConfig(directory, &model));
  BATON_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(directory));
  // Fewer are common: a vocabulary is padded. More would index past the embedding.
  if (static_cast<uint32_t>(model.tokenizer->vocab_size()) > model.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json has ids up to ", model.tokenizer->vocab_size() - 1,
                     ", but config.json says that the model's vocab_size is ", model.vocab_size));
  }
  model.text_bytes_max = std::min(kTextBytesMax, kTextBytesPerToken * model.context_tokens);
  model.chat = ChatFormat::Load(directory);
  return model;
}

}  // namespace baton
