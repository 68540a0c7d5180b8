#include "tests/simulation/simulated_client.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/engine/executor.h"
#include "common/engine/testing/fake_model.h"
#include "common/engine/work_codec.h"
#include "common/kv_cache/block_pool.h"
#include "tests/simulation/simulated_worker.h"

namespace baton {
namespace {

std::string TextOf(TokenId token) { return absl::StrCat("<", token, ">"); }

class TokenText final : public TextStream {
 public:
  explicit TokenText(std::string stop) : stop_(std::move(stop)) {}
  Step Feed(TokenId token) override {
    const std::string text = TextOf(token);
    if (!stop_.empty() && text == stop_) return {"", stop_};
    return {text, std::nullopt};
  }
  Step Flush() override { return {}; }

 private:
  const std::string stop_;
};

}  // namespace

Wish DrawWish(Dice& dice) {
  Wish wish;
  // Few beginnings, so that prefix caches have something to do.
  const uint32_t shared = dice.Chance(0.6) ? dice.Between(1, 24) : 0;
  const uint32_t family = dice.Below(3);
  for (uint32_t i = 0; i < shared; ++i) {
    wish.prompt.push_back(static_cast<TokenId>((family * 31 + i * 7) % kSimulatedVocabulary));
  }
  for (uint32_t i = dice.Between(shared == 0 ? 1 : 0, 24); i > 0; --i) {
    wish.prompt.push_back(static_cast<TokenId>(dice.Below(kSimulatedVocabulary)));
  }
  wish.total_tokens_max = static_cast<uint32_t>(wish.prompt.size()) + dice.Between(1, 40);
  wish.sampling.set_seed(dice.Roll());
  if (dice.Chance(0.5)) {
    wish.sampling.set_temperature(2);
    if (dice.Chance(0.3)) wish.sampling.set_presence_penalty(1);
    if (dice.Chance(0.3)) wish.sampling.set_top_k(20);
  } else {
    wish.sampling.set_temperature(0);
  }
  if (dice.Chance(0.3)) wish.sampling.set_logprobs(dice.Below(3));
  for (uint32_t i = dice.Below(4); i > 0; --i) {
    wish.stopping.add_stop_token_ids(static_cast<int32_t>(dice.Below(kSimulatedVocabulary)));
  }
  if (dice.Chance(0.2)) wish.stopping.set_min_tokens(dice.Between(1, 4));
  wish.priority = static_cast<int32_t>(dice.Below(3));
  if (dice.Chance(0.2)) {
    wish.stop_string = TextOf(static_cast<TokenId>(dice.Below(kSimulatedVocabulary)));
  }
  return wish;
}

std::vector<TokenId> UndisturbedStream(const Wish& wish, uint32_t window) {
  FakeModel model(kSimulatedVocabulary, kSimulatedContext, window);
  const std::unique_ptr<Device> device = MakeHostDevice();
  const uint32_t blocks = kSimulatedContext / kSimulatedBlockTokens;
  const auto arena = KvArena::Create(*device, model.Layout(kSimulatedBlockTokens), blocks).value();
  BlockPool pool(blocks);
  Executor executor(&model, arena.get());
  v1::Work work;
  work.mutable_tokens()->Assign(wish.prompt.begin(), wish.prompt.end());
  work.set_prompt_tokens(static_cast<uint32_t>(wish.prompt.size()));
  work.set_total_tokens_max(wish.total_tokens_max);
  *work.mutable_sampling() = wish.sampling;
  *work.mutable_stopping() = wish.stopping;
  Sequence sequence = SequenceFromWork({}, work, model.config(), {}).value();
  BATON_CHECK(ReserveBlocks(pool, kSimulatedBlockTokens, wish.total_tokens_max, sequence).ok());
  do {
    const StepItem item = {.sequence = &sequence, .count = sequence.pending()};
    BATON_CHECK(executor.Run({&item, 1}, nullptr).ok());
    if (TextOf(sequence.tokens.back()) == wish.stop_string) break;
  } while (!FinishOf(sequence).has_value());
  return {sequence.tokens.begin() + wish.prompt.size(), sequence.tokens.end()};
}

NewRequest SimulatedClient::Call(RequestId id, Instant now) {
  NewRequest request;
  request.id = id;
  request.client_request_id = name_;
  request.tokens = wish_.prompt;
  request.tokens.insert(request.tokens.end(), tokens_.begin(), tokens_.end());
  request.prompt_tokens = static_cast<uint32_t>(wish_.prompt.size());
  request.total_tokens_max = wish_.total_tokens_max;
  request.sampling = wish_.sampling;
  request.stopping = wish_.stopping;
  request.priority = wish_.priority;
  request.text = std::make_unique<TokenText>(wish_.stop_string);
  request.received = now;
  request.deadline = deadline;
  call = id;
  return request;
}

std::optional<std::string> SimulatedClient::OnDelta(const v1::Delta& delta) {
  for (const v1::Token& token : delta.tokens()) {
    if (token.index() != tokens_.size()) {
      return absl::StrCat(name_, " was sent the token of index ", token.index(), " when ",
                          tokens_.size(), " was due");
    }
    if (wish_.sampling.has_logprobs() &&
        (!token.has_logprob() ||
         token.top_logprobs_size() != static_cast<int>(wish_.sampling.logprobs()))) {
      return absl::StrCat(name_, " was sent a token without its log-probabilities");
    }
    tokens_.push_back(token.id());
  }
  text_ += delta.text();
  return std::nullopt;
}

std::optional<std::string> SimulatedClient::Judge(const absl::Status& status,
                                                  v1::FinishReason reason,
                                                  const FaultPlan& plan) const {
  const std::vector<TokenId> expected = UndisturbedStream(wish_, plan.window);
  const size_t count = std::min(expected.size(), tokens_.size());
  if (!std::equal(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(count),
                  expected.begin()) ||
      tokens_.size() > expected.size()) {
    return absl::StrCat(name_, " was sent other tokens than those of an undisturbed run");
  }
  if (status.ok()) {
    if (tokens_.size() < expected.size()) {
      return absl::StrCat(name_, " ended well after ", tokens_.size(), " of ", expected.size(),
                          " tokens (", v1::FinishReason_Name(reason), ")");
    }
    return std::nullopt;
  }
  const bool wanted = (absl::IsCancelled(status) && cancels_at != kNever) ||
                      (absl::IsDeadlineExceeded(status) && deadline != kNever) ||
                      (absl::IsResourceExhausted(status) &&
                       (plan.slow_clients || deadline != kNever || !plan.unlimited_retries())) ||
                      (absl::IsUnavailable(status) && !plan.unlimited_retries());
  if (wanted) return std::nullopt;
  return absl::StrCat(name_, " ended with ", status.ToString());
}

}  // namespace baton
