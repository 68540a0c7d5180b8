#include "router/request_table.h"

#include "common/base/check.h"

namespace baton {

Request* RequestTable::Find(RequestId id) {
  const auto it = requests_.find(id);
  return it == requests_.end() ? nullptr : it->second.get();
}

Request* RequestTable::FindAttempt(AttemptId attempt) {
  const auto it = attempts_.find(attempt);
  return it == attempts_.end() ? nullptr : it->second;
}

Request& RequestTable::Insert(NewRequest spec) {
  const RequestId id = spec.id;
  auto request = std::make_unique<Request>();
  request->given_tokens = static_cast<uint32_t>(spec.tokens.size()) - spec.prompt_tokens;
  request->spec = std::move(spec);
  request->arrival = next_arrival_++;
  deadlines_.Add(request->spec.deadline, id);
  const auto [it, inserted] = requests_.emplace(id, std::move(request));
  BATON_CHECK(inserted);
  return *it->second;
}

void RequestTable::Erase(RequestId id) {
  const auto it = requests_.find(id);
  BATON_CHECK(it != requests_.end());
  BATON_CHECK(it->second->attempt == AttemptId{} && !it->second->move.has_value());
  deadlines_.Remove(it->second->spec.deadline, id);
  requests_.erase(it);
}

void RequestTable::StartAttempt(Request& request) {
  BATON_CHECK(request.attempt == AttemptId{});
  request.attempt = AttemptId{next_attempt_++};
  attempts_[request.attempt] = &request;
}

void RequestTable::EndAttempt(Request& request) {
  attempts_.erase(request.attempt);
  request.attempt = AttemptId{};
}

AttemptId RequestTable::StartMove(Request& request) {
  BATON_CHECK(request.attempt != AttemptId{} && !request.move.has_value());
  const AttemptId attempt{next_attempt_++};
  request.move.emplace().attempt = attempt;
  attempts_[attempt] = &request;
  return attempt;
}

void RequestTable::EndMove(Request& request) {
  attempts_.erase(request.move->attempt);
  request.move.reset();
}

void RequestTable::CompleteMove(Request& request) {
  attempts_.erase(request.attempt);
  request.attempt = request.move->attempt;
  request.move.reset();
}

}  // namespace baton
