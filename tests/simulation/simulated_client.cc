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

constexpr uint32_t kPromptTokensMax = 48;

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
  const uint32_t shared = dice.Chance(0.6) ? dice.Between(1, kPromptTokensMax / 2) : 0;
  const uint32_t family = dice.Below(3);
  for (uint32_t i = 0; i < shared; ++i) {
    wish.prompt.push_back(static_cast<TokenId>((family * 31 + i * 7) % kSimulatedVocabulary));
  }
  for (uint32_t i = dice.Between(shared == 0 ? 1 : 0, kPromptTokensMax / 2); i > 0; --i) {
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
  if (dice.Chance(0.6)) wish.sampling.set_logprobs(dice.Below(3));
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

std::vector<v1::Token> UndisturbedStream(const Wish& wish, uint32_t window) {
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
  std::vector<v1::Token> stream;
  do {
    const StepItem item = {.sequence = &sequence, .count = sequence.pending()};
    const SampledToken sampled = *executor.Run({&item, 1}, nullptr).value()[0];
    stream.push_back(TokenToProto(sequence.generated() - 1, sampled, sequence.sampling));
    if (TextOf(sampled.id) == wish.stop_string) break;
  } while (!FinishOf(sequence).has_value());
  return stream;
}

std::vector<TokenId> Quote(const Wish& other, uint32_t window, Dice& dice) {
  std::vector<TokenId> text = other.prompt;
  for (const v1::Token& token : UndisturbedStream(other, window)) text.push_back(token.id());
  const auto blocks = static_cast<uint32_t>(text.size()) / kSimulatedBlockTokens;
  if (blocks < 2) return other.prompt;
  const uint32_t begin = dice.Between(1u, blocks - 1) * kSimulatedBlockTokens;
  const uint32_t end = dice.Between(
      begin + 1, std::min(begin + kPromptTokensMax, static_cast<uint32_t>(text.size())));
  return {text.begin() + begin, text.begin() + end};
}

NewRequest SimulatedClient::Call(RequestId id, Instant now) {
  NewRequest request;
  request.id = id;
  request.client_request_id = name_;
  request.tokens = wish_.prompt;
  for (const v1::Token& token : tokens_) request.tokens.push_back(token.id());
  request.prompt_tokens = static_cast<uint32_t>(wish_.prompt.size());
  request.total_tokens_max = wish_.total_tokens_max;
  request.open_ended = wish_.open_ended;
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
    tokens_.push_back(token);
  }
  text_ += delta.text();
  return std::nullopt;
}

bool SimulatedClient::Ends(TokenId token) const {
  const auto& stops = wish_.stopping.stop_token_ids();
  return std::find(stops.begin(), stops.end(), token) != stops.end() ||
         TextOf(token) == wish_.stop_string;
}

bool SimulatedClient::MayEndEarly(v1::FinishReason reason, const FaultPlan& plan) const {
  const uint32_t smallest =
      std::min(plan.DecodeBlocks(0), plan.DecodeBlocks(plan.decode_workers - 1));
  return wish_.open_ended && reason == v1::FINISH_REASON_LENGTH &&
         wish_.prompt.size() + tokens_.size() >= size_t{smallest} * kSimulatedBlockTokens;
}

std::optional<std::string> SimulatedClient::Judge(const absl::Status& status,
                                                  v1::FinishReason reason,
                                                  const FaultPlan& plan) const {
  const std::vector<v1::Token> expected = UndisturbedStream(wish_, plan.window);
  const auto same = [](const v1::Token& a, const v1::Token& b) {
    return a.SerializeAsString() == b.SerializeAsString();
  };
  if (tokens_.size() > expected.size() ||
      !std::equal(tokens_.begin(), tokens_.end(), expected.begin(), same)) {
    return absl::StrCat(name_, " was sent other tokens than those of an undisturbed run");
  }
  std::string text;  // Ends before what stops it.
  for (const v1::Token& token : tokens_) text += Ends(token.id()) ? "" : TextOf(token.id());
  if (text_ != text) {
    return absl::StrCat(name_, " was sent the text '", text_, "', not '", text, "'");
  }
  if (status.ok()) {
    if (tokens_.size() < expected.size() && !MayEndEarly(reason, plan)) {
      return absl::StrCat(name_, " ended well after ", tokens_.size(), " of ", expected.size(),
                          " tokens");
    }
    const v1::FinishReason due =
        Ends(tokens_.back().id()) ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
    if (reason == due) return std::nullopt;
    return absl::StrCat(name_, " ended with ", v1::FinishReason_Name(reason), ", not ",
                        v1::FinishReason_Name(due));
  }
  const bool wanted =
      (absl::IsCancelled(status) && cancels_at != kNever) ||
      (absl::IsDeadlineExceeded(status) && deadline != kNever) ||
      (absl::IsAborted(status) && plan.slow_clients) ||
      (absl::IsResourceExhausted(status) && (deadline != kNever || !plan.unlimited_retries())) ||
      (absl::IsUnavailable(status) && !plan.unlimited_retries());
  if (wanted) return std::nullopt;
  return absl::StrCat(name_, " ended with ", status.ToString());
}

}  // namespace baton
