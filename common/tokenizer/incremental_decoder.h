// Turns a stream of token ids into text, piece by piece: never half a character, and all pieces
// together are exactly Tokenizer::Decode of all ids.
//
// What may still change with the next token is held back: the beginning of a character, a run of
// byte tokens (which is text only if the whole run is UTF-8, up to kByteRunBytesMax), white space
// that cleaning up might remove. Bytes that are no character become U+FFFD as in Hugging Face's
// tokenizers: one for each maximal subpart (byte-level), or for each byte of the run (fallback).
//
// One stream, one decoder. Not thread-safe; the tokenizer may be shared.
#ifndef BATON_COMMON_TOKENIZER_INCREMENTAL_DECODER_H_
#define BATON_COMMON_TOKENIZER_INCREMENTAL_DECODER_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/tokenizer/tokenizer.h"

namespace baton {

struct DecodeOptions {
  bool skip_special_tokens = true;
  // The ids go on from a text that the client already has (its prompt). Then the space that begins
  // a SentencePiece text is a space like any other.
  bool continues_text = false;
  // Remove the spaces before punctuation where tokenizer_config.json asks for it
  // (clean_up_tokenization_spaces).
  bool clean_up_spaces = true;
};

class IncrementalDecoder {
 public:
  // A longer run of byte tokens is no longer held back; from there on, each character of it that is
  // UTF-8 counts by itself.
  static constexpr size_t kByteRunBytesMax = 512;

  // `tokenizer` outlives the decoder.
  IncrementalDecoder(const Tokenizer* tokenizer, DecodeOptions options);

  // The text that has become certain; often empty. An id without a token adds nothing.
  std::string Push(TokenId id);

  // The text held back, now that no more ids come. The decoder then stands as at its beginning, but
  // within the text.
  std::string Flush();

 private:
  enum class Run {
    kNone,
    kHeld,    // UTF-8 so far, all of it in held_.
    kBroken,  // Not UTF-8: each byte is U+FFFD.
    kLong,    // Too long to hold: judged character by character, held_ has an incomplete one.
  };
  // Replaces `from` by `to` in a stream; `held` may be the beginning of `from`.
  struct Replacer {
    std::string_view from;
    std::string_view to;
    std::string held;
  };

  // Each appends to *text what has become certain.
  void AddBytes(const std::string& bytes, std::string* text);
  void AddRunByte(char byte, std::string* text);
  void JudgeHeldRun(std::string* text);
  void JudgeLongRun(std::string* text);
  void EndRun(std::string* text);

  // Strips the text's beginning, then cleans up.
  std::string Finish(std::string text, bool is_last);
  static void Replace(Replacer* replacer, bool is_last, std::string* text);

  const TokenDecoder* decoder_;
  const DecodeOptions options_;
  bool is_at_start_;      // No token has been taken.
  size_t strip_left_;     // Characters that may still be stripped.
  std::string held_;      // Bytes that are not yet text.
  size_t held_text_ = 0;  // How many of them, from the front, are whole characters.
  Run run_ = Run::kNone;
  std::vector<Replacer> replacers_;
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_INCREMENTAL_DECODER_H_
