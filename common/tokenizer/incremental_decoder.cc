#include "common/tokenizer/incremental_decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/base/check.h"
#include "common/tokenizer/token_decoder.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

// What clean_up_tokenization_spaces does, one after the other over the whole text (Hugging Face
// transformers, PreTrainedTokenizerBase.clean_up_tokenization).
constexpr std::array<std::pair<std::string_view, std::string_view>, 10> kCleanUps = {{
    {" .", "."},
    {" ?", "?"},
    {" !", "!"},
    {" ,", ","},
    {" ' ", "'"},
    {" n't", "n't"},
    {" 'm", "'m"},
    {" 's", "'s"},
    {" 've", "'ve"},
    {" 're", "'re"},
}};

void AppendReplacements(size_t count, std::string* text) {
  for (size_t i = 0; i < count; ++i) *text += kReplacementCharacter;
}

}  // namespace

IncrementalDecoder::IncrementalDecoder(const Tokenizer* tokenizer, DecodeOptions options)
    : decoder_(&tokenizer->decoder()),
      options_(options),
      is_at_start_(!options.continues_text),
      strip_left_(options.continues_text ? 0 : decoder_->strip_count()) {
  if (options.clean_up_spaces && tokenizer->cleans_up_spaces()) {
    for (const auto& [from, to] : kCleanUps) replacers_.push_back({from, to, ""});
  }
}

std::string IncrementalDecoder::Push(TokenId id) {
  if (!decoder_->Has(id)) return "";
  if (options_.skip_special_tokens && decoder_->IsSpecial(id)) return "";
  const std::string& piece = is_at_start_ ? decoder_->FirstPiece(id) : decoder_->Piece(id);
  is_at_start_ = false;
  std::string text;
  switch (decoder_->joining()) {
    case TokenDecoder::Joining::kText:
      text = piece;
      break;
    case TokenDecoder::Joining::kBytes:
      AddBytes(piece, &text);
      break;
    case TokenDecoder::Joining::kByteRuns:
      if (decoder_->IsByte(id)) {
        AddRunByte(piece[0], &text);
      } else {
        EndRun(&text);
        text += piece;
      }
      break;
  }
  return Finish(std::move(text), /*is_last=*/false);
}

std::string IncrementalDecoder::Flush() {
  std::string text;
  EndRun(&text);
  if (!held_.empty()) text += kReplacementCharacter;  // Half a character, byte-level.
  held_.clear();
  return Finish(std::move(text), /*is_last=*/true);
}

void IncrementalDecoder::AddBytes(const std::string& bytes, std::string* text) {
  held_ += bytes;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const size_t valid = ValidUtf8Prefix(rest);
    text->append(rest.substr(0, valid));
    rest.remove_prefix(valid);
    if (rest.empty()) break;
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    *text += kReplacementCharacter;
    rest.remove_prefix(step.bytes);
  }
  held_.erase(0, held_.size() - rest.size());
}

void IncrementalDecoder::AddRunByte(char byte, std::string* text) {
  if (run_ == Run::kBroken) {
    AppendReplacements(1, text);
    return;
  }
  held_.push_back(byte);
  if (run_ == Run::kLong) {
    JudgeLongRun(text);
  } else {
    run_ = Run::kHeld;
    JudgeHeldRun(text);
  }
}

void IncrementalDecoder::JudgeHeldRun(std::string* text) {
  const std::string_view tail = std::string_view(held_).substr(held_text_);
  const Utf8Step step = NextUtf8(tail);
  switch (step.kind) {
    case Utf8Step::Kind::kIncomplete:
      return;
    case Utf8Step::Kind::kInvalid:
      AppendReplacements(held_.size(), text);
      run_ = Run::kBroken;
      break;
    case Utf8Step::Kind::kCharacter:
      held_text_ += step.bytes;
      if (held_.size() < kByteRunBytesMax) return;
      *text += held_;
      run_ = Run::kLong;
      break;
  }
  held_.clear();
  held_text_ = 0;
}

void IncrementalDecoder::JudgeLongRun(std::string* text) {
  while (!held_.empty()) {
    const Utf8Step step = NextUtf8(held_);
    if (step.kind == Utf8Step::Kind::kIncomplete) return;
    if (step.kind == Utf8Step::Kind::kCharacter) {
      text->append(held_, 0, step.bytes);
    } else {
      AppendReplacements(step.bytes, text);
    }
    held_.erase(0, step.bytes);
  }
}

void IncrementalDecoder::EndRun(std::string* text) {
  if (run_ == Run::kNone) return;
  if (run_ == Run::kHeld && held_text_ == held_.size()) {
    *text += held_;
  } else {
    AppendReplacements(held_.size(), text);
  }
  held_.clear();
  held_text_ = 0;
  run_ = Run::kNone;
}

std::string IncrementalDecoder::Finish(std::string text, bool is_last) {
  const std::string& stripped = decoder_->strip_character();
  size_t begin = 0;
  while (strip_left_ > 0 && begin < text.size()) {
    if (text.compare(begin, stripped.size(), stripped) == 0) {
      begin += stripped.size();
      --strip_left_;
    } else {
      strip_left_ = 0;
    }
  }
  text.erase(0, begin);
  for (Replacer& replacer : replacers_) Replace(&replacer, is_last, &text);
  return text;
}

void IncrementalDecoder::Replace(Replacer* replacer, bool is_last, std::string* text) {
  if (text->empty() && !is_last) return;
  replacer->held += *text;
  text->clear();
  std::string_view rest = replacer->held;
  for (size_t hit = rest.find(replacer->from); hit != std::string_view::npos;
       hit = rest.find(replacer->from)) {
    text->append(rest.substr(0, hit));
    text->append(replacer->to);
    rest.remove_prefix(hit + replacer->from.size());
  }
  size_t keep = is_last ? 0 : std::min(rest.size(), replacer->from.size() - 1);
  while (keep > 0 && rest.substr(rest.size() - keep) != replacer->from.substr(0, keep)) --keep;
  text->append(rest.substr(0, rest.size() - keep));
  replacer->held = std::string(rest.substr(rest.size() - keep));
}

}  // namespace baton
