// A client of the simulated cluster, and what it must see: the stream of an undisturbed run, byte
// for byte.
#ifndef BATON_TESTS_SIMULATION_SIMULATED_CLIENT_H_
#define BATON_TESTS_SIMULATION_SIMULATED_CLIENT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "proto/types.pb.h"
#include "router/actions.h"
#include "router/request_table.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/fault_plan.h"

namespace baton {

// What a client sends, and what one process gives for it that nothing ever happens to.
struct Wish {
  std::vector<TokenId> prompt;
  uint32_t total_tokens_max = 0;
  bool open_ended = false;
  v1::SamplingOptions sampling;
  v1::StopOptions stopping;
  int32_t priority = 0;
  std::string stop_string;  // Empty: none. Else the whole text of one token.
};

Wish DrawWish(Dice& dice);

// What a run of the fake model in one process gives, without cache, router or network.
std::vector<v1::Token> UndisturbedStream(const Wish& wish, uint32_t window);

// Something that stands in the middle of another client's text, from the beginning of a block on:
// no prefix of that one, whatever caches say. Of a text too short for that, its prompt.
std::vector<TokenId> Quote(const Wish& other, uint32_t window, Dice& dice);

class SimulatedClient {
 public:
  SimulatedClient(std::string name, Wish wish) : name_(std::move(name)), wish_(std::move(wish)) {}

  // The next call: with what was received so far as input, if there was one before.
  NewRequest Call(RequestId id, Instant now);
  // Why the message cannot be, if so.
  std::optional<std::string> OnDelta(const v1::Delta& delta);

  // What the cluster owes it, given how the call ended. Nothing: all is well.
  std::optional<std::string> Judge(const absl::Status& status, v1::FinishReason reason,
                                   const FaultPlan& plan) const;

  const std::string& name() const { return name_; }
  const Wish& wish() const { return wish_; }
  size_t received() const { return tokens_.size(); }

  Instant calls_at{};  // When it calls, first or again.
  Instant deadline = kNever;
  Instant cancels_at = kNever;
  std::optional<RequestId> call;  // Under way.
  bool over = false;

 private:
  const std::string name_;
  const Wish wish_;
  bool Ends(TokenId token) const;
  // Whether an answer without a given length may have come to the end of a worker's KV cache.
  bool MayEndEarly(v1::FinishReason reason, const FaultPlan& plan) const;

  std::vector<v1::Token> tokens_;
  std::string text_;
};

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_SIMULATED_CLIENT_H_
