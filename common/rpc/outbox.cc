#include "common/rpc/outbox.h"

#include <cstdint>

#include "absl/container/flat_hash_map.h"

namespace baton {
namespace {

using Sequence = v1::Tokens::Sequence;

using SequenceKey = std::pair<uint64_t, uint32_t>;  // Request and epoch.

SequenceKey KeyOf(const Sequence& sequence) { return {sequence.request(), sequence.epoch()}; }

bool Continues(const Sequence& first, const Sequence& second) {
  return !first.tokens().empty() && !second.tokens().empty() &&
         first.tokens().rbegin()->index() + 1 == second.tokens(0).index();
}

}  // namespace

bool MergeMessages(v1::Event* into, v1::Event* from) {
  if (!into->has_tokens() || !from->has_tokens()) return false;
  v1::Tokens* target = into->mutable_tokens();
  absl::flat_hash_map<SequenceKey, int> last;  // Position of a sequence's last entry.
  for (int i = 0; i < target->sequences_size(); ++i) last[KeyOf(target->sequences(i))] = i;
  for (Sequence& sequence : *from->mutable_tokens()->mutable_sequences()) {
    const auto found = last.find(KeyOf(sequence));
    if (found == last.end() || !Continues(target->sequences(found->second), sequence)) {
      last[KeyOf(sequence)] = target->sequences_size();
      *target->add_sequences() = std::move(sequence);
      continue;
    }
    Sequence* entry = target->mutable_sequences(found->second);
    for (v1::Token& token : *sequence.mutable_tokens()) *entry->add_tokens() = std::move(token);
  }
  return true;
}

}  // namespace baton
