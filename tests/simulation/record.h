// What a simulated run has to say: the first rule that was broken, and, when a seed is replayed,
// the story that led there.
#ifndef BATON_TESTS_SIMULATION_RECORD_H_
#define BATON_TESTS_SIMULATION_RECORD_H_

#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"

namespace baton {

class Record {
 public:
  // `lines_max`: of the story, the latest; 0 tells none.
  explicit Record(size_t lines_max) : lines_max_(lines_max) {}

  bool telling() const { return lines_max_ > 0; }
  // `parts` are formatted only if somebody wants the story.
  template <typename... Parts>
  void Tell(Instant now, const Parts&... parts) {
    if (!telling()) return;
    if (lines_.size() == lines_max_) lines_.pop_front();
    lines_.push_back(absl::StrCat(ToMilliseconds(now.time_since_epoch()), " ms  ", parts...));
  }

  // Only the first counts: what follows may be its consequence.
  void Violated(Instant now, std::string rule) {
    Tell(now, "VIOLATED: ", rule);
    if (!violation_) violation_ = std::move(rule);
  }
  const std::optional<std::string>& violation() const { return violation_; }
  const std::deque<std::string>& lines() const { return lines_; }

 private:
  const size_t lines_max_;
  std::deque<std::string> lines_;
  std::optional<std::string> violation_;
};

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_RECORD_H_
