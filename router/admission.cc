#include "router/admission.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace baton {

absl::Status AdmissionQueue::CheckRoom(uint64_t tokens) const {
  if (waiting_.size() >= limits_.requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the router's queue is full: ", waiting_.size(), " requests wait"));
  }
  // A request larger than the whole limit may still wait alone.
  if (!waiting_.empty() && tokens_ + tokens > limits_.tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the router's queue is full: ", tokens_, " tokens wait, at most ", limits_.tokens, " may"));
  }
  return absl::OkStatus();
}

void AdmissionQueue::Push(RequestId id, int32_t priority, uint64_t arrival, uint64_t tokens) {
  const bool inserted = waiting_.emplace(Key{priority, arrival}, Entry{id, tokens}).second;
  BATON_CHECK(inserted);
  tokens_ += tokens;
  tokens_by_priority_[priority] += tokens;
}

void AdmissionQueue::Remove(int32_t priority, uint64_t arrival) {
  const auto it = waiting_.find(Key{priority, arrival});
  BATON_CHECK(it != waiting_.end());
  tokens_ -= it->second.tokens;
  const auto of_priority = tokens_by_priority_.find(priority);
  of_priority->second -= it->second.tokens;
  if (of_priority->second == 0) tokens_by_priority_.erase(of_priority);
  waiting_.erase(it);
}

std::optional<RequestId> AdmissionQueue::front() const {
  if (waiting_.empty()) return std::nullopt;
  return waiting_.begin()->second.id;
}

std::optional<RequestId> AdmissionQueue::After(int32_t priority, uint64_t arrival) const {
  const auto it = waiting_.upper_bound(Key{priority, arrival});
  if (it == waiting_.end()) return std::nullopt;
  return it->second.id;
}

uint64_t AdmissionQueue::TokensAhead(int32_t priority) const {
  uint64_t sum = 0;
  for (auto it = tokens_by_priority_.lower_bound(priority); it != tokens_by_priority_.end(); ++it) {
    sum += it->second;
  }
  return sum;
}

}  // namespace baton
