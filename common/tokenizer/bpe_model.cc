#include "common/tokenizer/bpe_model.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/byte_level.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr TokenId kNone = -1;
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

// Up to here looking for the best pair anew after each merge is faster than a heap.
constexpr size_t kShortRun = 32;

uint64_t PairKey(TokenId left, TokenId right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

absl::Status Malformed(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model.", what));
}

// Of valid, non-empty UTF-8.
std::string FirstCharacter(const std::string& text) { return text.substr(0, NextUtf8(text).bytes); }
std::string LastCharacter(const std::string& text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

using Candidate = BpeModel::Scratch::Candidate;

// The candidates of one word, smallest first: those known at its beginning, and those that came up.
class CandidateQueue {
 public:
  explicit CandidateQueue(BpeModel::Scratch* scratch)
      : initial_(scratch->initial), heap_(scratch->heap) {
    initial_.clear();
    heap_.clear();
  }
  // Call once scratch->initial is filled.
  void Sort() {
    std::sort(initial_.begin(), initial_.end(), [](const Candidate& a, const Candidate& b) {
      return a.rank_and_position < b.rank_and_position;
    });
  }
  bool empty() const { return taken_ == initial_.size() && heap_.empty(); }
  void Push(const Candidate& candidate) {
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), IsLater);
  }
  // REQUIRES: !empty().
  Candidate Pop() {
    if (heap_.empty() || (taken_ < initial_.size() && IsLater(heap_[0], initial_[taken_]))) {
      return initial_[taken_++];
    }
    std::pop_heap(heap_.begin(), heap_.end(), IsLater);
    const Candidate top = heap_.back();
    heap_.pop_back();
    return top;
  }

 private:
  static bool IsLater(const Candidate& a, const Candidate& b) {
    return a.rank_and_position > b.rank_and_position;
  }

  std::vector<Candidate>& initial_;
  std::vector<Candidate>& heap_;
  size_t taken_ = 0;
};

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Create(const Json& spec, bool is_byte_level) {
  BpeModel model;
  model.is_byte_level_ = is_byte_level;
  BATON_RETURN_IF_ERROR(model.LoadVocabulary(spec));
  BATON_RETURN_IF_ERROR(model.LoadOptions(spec));
  BATON_RETURN_IF_ERROR(model.LoadMerges(spec));
  model.IndexSymbols();
  return model;
}

absl::Status BpeModel::CheckType(const Json& spec) {
  std::string type = "BPE";
  if (FindField(spec, "type") != nullptr) {
    BATON_ASSIGN_OR_RETURN(type, StringField(spec, "type", "model"));
  } else if (const Json* vocabulary = FindField(spec, "vocab");
             vocabulary != nullptr && vocabulary->is_array()) {
    type = "Unigram";  // Older files do not say so; but only its vocabulary is a list, of scores.
  }
  if (type == "BPE") return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("tokenizer.json: model: type \"", type,
                                               "\" is not supported; supported is BPE"));
}

absl::Status BpeModel::LoadOptions(const Json& spec) {
  const Json* dropout = FindField(spec, "dropout");
  if (dropout != nullptr && !(dropout->is_number() && dropout->get<double>() == 0.0)) {
    return Unsupported("model.dropout", "a value other than 0");
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* field = FindField(spec, affix);
    if (field != nullptr && !(field->is_string() && field->get<std::string>().empty())) {
      return Unsupported(absl::StrCat("model.", affix), "a value");
    }
  }
  BATON_ASSIGN_OR_RETURN(fuse_unknown_, BoolField(spec, "fuse_unk", false, "model"));
  BATON_ASSIGN_OR_RETURN(byte_fallback_, BoolField(spec, "byte_fallback", false, "model"));
  BATON_ASSIGN_OR_RETURN(ignore_merges_, BoolField(spec, "ignore_merges", false, "model"));
  if (FindField(spec, "unk_token") != nullptr) {
    BATON_ASSIGN_OR_RETURN(const std::string unknown, StringField(spec, "unk_token", "model"));
    unknown_ = Find(unknown);
    if (!unknown_.has_value()) {
      return Malformed(absl::StrCat("unk_token: \"", unknown, "\" is not in the vocabulary"));
    }
  }
  return absl::OkStatus();
}

absl::Status BpeModel::LoadVocabulary(const Json& spec) {
  const Json* vocabulary = FindField(spec, "vocab");
  if (vocabulary == nullptr || !vocabulary->is_object()) {
    return Malformed("vocab: expected an object of token to id");
  }
  if (vocabulary->empty() || vocabulary->size() > kVocabularyMax) {
    return Malformed(
        absl::StrCat("vocab: ", vocabulary->size(), " tokens, expected 1 to ", kVocabularyMax));
  }
  vocabulary_.reserve(vocabulary->size());
  absl::flat_hash_set<TokenId> seen;
  seen.reserve(vocabulary->size());
  for (const auto& [token, id] : vocabulary->items()) {
    if (token.size() > kTokenBytesMax) return Malformed("vocab: a token is too long");
    const std::optional<TokenId> value = WholeNumber(id, kIdMax);
    if (!value.has_value()) {
      return Malformed(absl::StrCat("vocab: \"", token, "\": expected an id up to ", kIdMax));
    }
    if (!seen.insert(*value).second) {
      return Malformed(absl::StrCat("vocab: id ", *value, " belongs to two tokens"));
    }
    vocabulary_.emplace(token, *value);
  }
  return absl::OkStatus();
}

absl::Status BpeModel::LoadMerges(const Json& spec) {
  const Json* merges = FindField(spec, "merges");
  if (merges == nullptr || !merges->is_array()) return Malformed("merges: expected a list");
  if (merges->size() > kMergeCountMax) {
    return Malformed(absl::StrCat("merges: ", merges->size(), ", more than ", kMergeCountMax));
  }
  merges_.reserve(merges->size());
  for (size_t i = 0; i < merges->size(); ++i) {
    const Json& merge = (*merges)[i];
    const auto rank = static_cast<uint32_t>(i);
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      if (text.rfind("#version", 0) == 0) continue;
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        return Malformed(absl::StrCat("merges[", i, "]: expected two tokens and a space"));
      }
      BATON_RETURN_IF_ERROR(AddMerge(rank, text.substr(0, space), text.substr(space + 1)));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      BATON_RETURN_IF_ERROR(AddMerge(rank, merge[0].get_ref<const std::string&>(),
                                     merge[1].get_ref<const std::string&>()));
    } else {
      return Malformed(absl::StrCat("merges[", i, "]: expected a string or a pair of strings"));
    }
  }
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerge(uint32_t rank, const std::string& left, const std::string& right) {
  const std::optional<TokenId> left_id = Find(left);
  const std::optional<TokenId> right_id = Find(right);
  const std::optional<TokenId> merged = Find(absl::StrCat(left, right));
  if (!left_id || !right_id || !merged || left.empty() || right.empty()) {
    return Malformed(absl::StrCat("merges[", rank, "]: \"", left, "\", \"", right,
                                  "\" or their union is not in the vocabulary"));
  }
  // Of two rules for a pair the later one counts, as in Hugging Face's tokenizers.
  merges_.insert_or_assign(PairKey(*left_id, *right_id), Merge{rank, *merged});
  AddJoint(left, right);
  return absl::OkStatus();
}

// The merge joins the last symbol of `left` to the first of `right`. That symbol is a character of
// the token's text, or the whole token where that is a symbol itself (<unk>, <0x0A>): both are
// noted, for a joint too many costs time and never changes the result.
void BpeModel::AddJoint(const std::string& left, const std::string& right) {
  const TokenId lefts[] = {Find(left).value_or(kNone), Find(LastCharacter(left)).value_or(kNone)};
  const TokenId rights[] = {Find(right).value_or(kNone),
                            Find(FirstCharacter(right)).value_or(kNone)};
  for (const TokenId a : lefts) {
    for (const TokenId b : rights) {
      if (a != kNone && b != kNone) joints_.insert(PairKey(a, b));
    }
  }
}

void BpeModel::IndexSymbols() {
  for (int byte = 0; byte < 256; ++byte) {
    std::string token;
    if (is_byte_level_) {
      AppendUtf8(ByteLevelCharacter(static_cast<uint8_t>(byte)), &token);
    } else {
      token = absl::StrFormat("<0x%02X>", byte);
    }
    bytes_[static_cast<size_t>(byte)] = Find(token).value_or(kNone);
  }
  for (const auto& [token, id] : vocabulary_) {
    if (token.empty()) continue;
    const Utf8Step step = NextUtf8(token);
    if (step.bytes == token.size()) characters_.emplace(step.code_point, id);
    if (!ignore_merges_) continue;
    if (!is_byte_level_) {
      words_.emplace(token, id);
    } else if (std::optional<std::string> bytes = ByteLevelBytes(token)) {
      words_.emplace(*std::move(bytes), id);
    }
  }
}

std::optional<TokenId> BpeModel::Find(const std::string& token) const {
  const auto found = vocabulary_.find(token);
  if (found == vocabulary_.end()) return std::nullopt;
  return found->second;
}

void BpeModel::ForEachToken(const std::function<void(TokenId, const std::string&)>& visit) const {
  for (const auto& [token, id] : vocabulary_) visit(id, token);
}

const BpeModel::Merge* BpeModel::FindMerge(TokenId left, TokenId right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

absl::Status BpeModel::Encode(std::string_view word, Scratch* scratch,
                              std::vector<TokenId>* ids) const {
  if (word.empty()) return absl::OkStatus();
  if (ignore_merges_) {
    const auto found = words_.find(absl::string_view(word.data(), word.size()));
    if (found != words_.end()) {
      ids->push_back(found->second);
      return absl::OkStatus();
    }
  }
  BATON_RETURN_IF_ERROR(ToSymbols(word, &scratch->symbols));
  const std::span<const TokenId> symbols(scratch->symbols);
  size_t begin = 0;
  for (size_t end = 1; end <= symbols.size(); ++end) {
    const bool is_last = end == symbols.size();
    if (!is_last && (symbols.size() <= kShortRun ||
                     joints_.contains(PairKey(symbols[end - 1], symbols[end])))) {
      continue;
    }
    const std::span<const TokenId> run = symbols.subspan(begin, end - begin);
    if (run.size() <= kShortRun) {
      MergeShort(run, ids);
    } else {
      MergeLong(run, scratch, ids);
    }
    begin = end;
  }
  return absl::OkStatus();
}

TokenId BpeModel::FindCharacter(std::string_view character, char32_t code_point) const {
  if (is_byte_level_) return bytes_[static_cast<unsigned char>(character[0])];
  const auto found = characters_.find(code_point);
  return found == characters_.end() ? kNone : found->second;
}

absl::Status BpeModel::ToSymbols(std::string_view word, std::vector<TokenId>* symbols) const {
  symbols->clear();
  bool has_unknown = false;
  while (!word.empty()) {
    const Utf8Step step = is_byte_level_ ? Utf8Step{Utf8Step::Kind::kCharacter, 1,
                                                    static_cast<unsigned char>(word[0])}
                                         : NextUtf8(word);
    const std::string_view character = word.substr(0, step.bytes);
    word.remove_prefix(step.bytes);
    const TokenId id = FindCharacter(character, step.code_point);
    if (id == kNone) {
      BATON_RETURN_IF_ERROR(AddFallback(character, step.code_point, &has_unknown, symbols));
      continue;
    }
    if (has_unknown) symbols->push_back(*unknown_);
    has_unknown = false;
    symbols->push_back(id);
  }
  if (has_unknown) symbols->push_back(*unknown_);
  return absl::OkStatus();
}

absl::Status BpeModel::AddFallback(std::string_view character, char32_t code_point,
                                   bool* has_unknown, std::vector<TokenId>* symbols) const {
  const auto has_token = [this](char byte) {
    return bytes_[static_cast<unsigned char>(byte)] != kNone;
  };
  if (byte_fallback_ && !is_byte_level_ &&
      std::all_of(character.begin(), character.end(), has_token)) {
    // A waiting <unk> stays behind these bytes: as in Hugging Face's tokenizers.
    for (const char byte : character) {
      symbols->push_back(bytes_[static_cast<unsigned char>(byte)]);
    }
    return absl::OkStatus();
  }
  if (!unknown_.has_value()) {
    return absl::InvalidArgumentError(absl::StrFormat("text: the vocabulary has no token for %s%X",
                                                      is_byte_level_ ? "byte 0x" : "U+",
                                                      static_cast<uint32_t>(code_point)));
  }
  if (*has_unknown && !fuse_unknown_) symbols->push_back(*unknown_);
  *has_unknown = true;
  return absl::OkStatus();
}

// REQUIRES: run.size() <= kShortRun.
void BpeModel::MergeShort(std::span<const TokenId> run, std::vector<TokenId>* ids) const {
  std::array<TokenId, kShortRun> symbols;
  std::array<Merge, kShortRun> merges;  // [i]: of symbols i and i + 1.
  size_t count = run.size();
  std::copy(run.begin(), run.end(), symbols.begin());
  const auto look_up = [&](size_t i) {
    const Merge* merge = FindMerge(symbols[i], symbols[i + 1]);
    merges[i] = merge == nullptr ? Merge{kNoRank, kNone} : *merge;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbols[best] = merges[best].merged;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(count));
}

// `run` lies in scratch->symbols, and is consumed.
void BpeModel::MergeLong(std::span<const TokenId> run, Scratch* scratch,
                         std::vector<TokenId>* ids) const {
  TokenId* symbols = scratch->symbols.data() + (run.data() - scratch->symbols.data());
  const auto count = static_cast<int32_t>(run.size());
  std::vector<int32_t>& previous = scratch->previous;
  std::vector<int32_t>& next = scratch->next;
  previous.resize(run.size());
  next.resize(run.size());
  for (int32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1 < count ? i + 1 : -1;
  }
  // The pairs of the word as given are sorted once, which is faster than a heap; only pairs that
  // merges bring about go through the heap.
  CandidateQueue queue(scratch);
  const auto consider = [&](int32_t left, int32_t right, auto add) {
    if (left < 0 || right < 0) return;
    const Merge* merge = FindMerge(symbols[left], symbols[right]);
    if (merge == nullptr) return;
    add(Scratch::Candidate{(uint64_t{merge->rank} << 32) | static_cast<uint32_t>(left),
                           merge->merged});
  };
  for (int32_t i = 0; i + 1 < count; ++i) {
    consider(i, i + 1, [&](const auto& candidate) { scratch->initial.push_back(candidate); });
  }
  queue.Sort();
  const auto add_new = [&](const auto& candidate) { queue.Push(candidate); };
  while (!queue.empty()) {
    const Scratch::Candidate top = queue.Pop();
    const auto left = static_cast<int32_t>(top.rank_and_position & 0xFFFFFFFFu);
    const int32_t right = symbols[left] == kNone ? -1 : next[left];
    if (right < 0) continue;
    const Merge* merge = FindMerge(symbols[left], symbols[right]);
    if (merge == nullptr || merge->merged != top.merged) continue;  // Overtaken by another merge.
    symbols[left] = top.merged;
    symbols[right] = kNone;
    next[left] = next[right];
    if (next[left] >= 0) previous[next[left]] = left;
    consider(previous[left], left, add_new);
    consider(left, next[left], add_new);
  }
  for (int32_t i = 0; i >= 0; i = next[i]) ids->push_back(symbols[i]);
}

}  // namespace baton
