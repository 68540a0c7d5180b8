// Which share of prompt tokens workers compute, and do not find in their prefix caches: what they
// reported of the last prompts stands for those that wait.
//
// Owned by RouterCore; one thread.
#ifndef BATON_ROUTER_COMPUTED_SHARE_H_
#define BATON_ROUTER_COMPUTED_SHARE_H_

#include <algorithm>
#include <cstdint>

namespace baton {

class ComputedShare {
 public:
  // A prompt of so many tokens was computed, but for those that were cached.
  void Add(uint64_t tokens, uint64_t cached_tokens) {
    tokens_ = kKept * tokens_ + static_cast<double>(tokens);
    computed_ = kKept * computed_ + static_cast<double>(tokens - std::min(tokens, cached_tokens));
  }

  // Whether any prompt was reported.
  bool known() const { return tokens_ > 0; }
  // How many of `tokens` will be computed: all, as long as nothing is known; at least one of some.
  uint64_t Of(uint64_t tokens) const {
    if (!known() || tokens == 0) return tokens;
    return std::max<uint64_t>(
        1, static_cast<uint64_t>(static_cast<double>(tokens) * computed_ / tokens_));
  }

 private:
  // What a report counts after the next one: the last eight or so decide.
  static constexpr double kKept = 0.875;

  double tokens_ = 0;
  double computed_ = 0;
};

}  // namespace baton

#endif  // BATON_ROUTER_COMPUTED_SHARE_H_
