// Byte-pair encoding: a word in, token ids out.
//
// Characters (or bytes) become symbols, then the adjacent pair of lowest rank, leftmost first, is
// merged until no pair has a rule (Sennrich et al., arXiv:1508.07909; ids as Hugging Face's
// tokenizers gives them). Any word of n symbols takes O(n log n).
//
// Immutable after Create; any thread, each call with its own Scratch.
#ifndef BATON_COMMON_TOKENIZER_BPE_MODEL_H_
#define BATON_COMMON_TOKENIZER_BPE_MODEL_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tokenizer/json_fields.h"

namespace baton {

class BpeModel {
 public:
  static constexpr size_t kVocabularyMax = 1 << 21;
  static constexpr size_t kMergeCountMax = 1 << 22;
  static constexpr size_t kTokenBytesMax = 4096;
  static constexpr TokenId kIdMax = (1 << 22) - 1;

  // Working memory that calls of one thread share, to spare allocations.
  struct Scratch {
    struct Candidate {
      uint64_t rank_and_position;  // Smallest first: by rank, then from the left.
      TokenId merged;
    };
    std::vector<TokenId> symbols;
    std::vector<int32_t> previous;  // By symbol: its neighbours; -1 for none.
    std::vector<int32_t> next;
    std::vector<Candidate> initial;
    std::vector<Candidate> heap;
  };

  // kUnimplemented names the type of `spec`, the "model" of tokenizer.json, if it is not BPE.
  static absl::Status CheckType(const Json& spec);
  // `spec` has passed CheckType. With `is_byte_level` the vocabulary spells bytes in
  // GPT-2's alphabet, and words are raw bytes.
  static absl::StatusOr<BpeModel> Create(const Json& spec, bool is_byte_level);

  // Appends the ids of `word`, which is text, or raw bytes of text when byte-level.
  // kInvalidArgument when a character has no token and there is neither byte fallback nor <unk>.
  absl::Status Encode(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const;

  std::optional<TokenId> Find(const std::string& token) const;
  void ForEachToken(const std::function<void(TokenId, const std::string&)>& visit) const;

 private:
  struct Merge {
    uint32_t rank;
    TokenId merged;
  };

  absl::Status LoadOptions(const Json& spec);
  absl::Status LoadVocabulary(const Json& spec);
  absl::Status LoadMerges(const Json& spec);
  absl::Status AddMerge(uint32_t rank, const std::string& left, const std::string& right);
  void AddJoint(const std::string& left, const std::string& right);
  void IndexSymbols();

  const Merge* FindMerge(TokenId left, TokenId right) const;
  TokenId FindCharacter(std::string_view character, char32_t code_point) const;
  absl::Status ToSymbols(std::string_view word, std::vector<TokenId>* symbols) const;
  // Appends the fallback for a character without a token of its own. `has_unknown` says that an
  // <unk> waits to be appended.
  absl::Status AddFallback(std::string_view character, char32_t code_point, bool* has_unknown,
                           std::vector<TokenId>* symbols) const;
  void MergeShort(std::span<const TokenId> run, std::vector<TokenId>* ids) const;
  void MergeLong(std::span<const TokenId> run, Scratch* scratch, std::vector<TokenId>* ids) const;

  bool is_byte_level_ = false;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  std::optional<TokenId> unknown_;

  absl::flat_hash_map<std::string, TokenId> vocabulary_;  // As spelled in the file.
  absl::flat_hash_map<std::string, TokenId> words_;       // By bytes; only with ignore_merges_.
  absl::flat_hash_map<uint64_t, Merge> merges_;           // By the pair of ids.
  // Pairs of symbols that stand side by side inside some merged token. Between any other two
  // symbols a word can be cut without changing the result.
  absl::flat_hash_set<uint64_t> joints_;
  absl::flat_hash_map<char32_t, TokenId> characters_;  // Tokens of one character.
  std::array<TokenId, 256> bytes_{};  // By byte: its token (byte-level) or <0xNN>; -1 for none.
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_BPE_MODEL_H_
