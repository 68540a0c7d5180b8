#include "tests/load/chaos_streams.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

constexpr Duration kDeadline = std::chrono::minutes(2);
constexpr Duration kAfterBreak = std::chrono::milliseconds(20);
// Of the streams that are given one: where in the undisturbed text their stop string begins.
constexpr double kStopAt = 0.6;
constexpr size_t kStopBytes = 4;

absl::StatusOr<Truth> Undisturbed(Cluster& cluster, v1::GenerateRequest request) {
  std::vector<std::string> tokens;
  Answer answer = cluster.Generate(request, kDeadline, [&tokens](const v1::Delta& delta) {
    for (const v1::Token& token : delta.tokens()) tokens.push_back(token.SerializeAsString());
    return true;
  });
  BATON_RETURN_IF_ERROR(answer.status);
  return Truth{.request = std::move(request),
               .tokens = std::move(tokens),
               .text = std::move(answer.text),
               .reason = answer.finished.reason()};
}

// The cluster must have told the truth. What has a stop string ends sooner: at most where one
// process, which knows none, does.
absl::Status CheckAgainstOneProcess(LocalRunner& runner, const Truth& truth) {
  const LocalResult result = runner.Run(WorkOf(truth.request, {}, 1));
  BATON_RETURN_IF_ERROR(result.status);
  const bool stopped = truth.request.stop_size() > 0;
  bool same = !truth.tokens.empty() && (stopped ? truth.tokens.size() <= result.tokens.size()
                                                : truth.tokens.size() == result.tokens.size());
  for (size_t i = 0; same && i < truth.tokens.size(); ++i) {
    v1::Token token;
    same = token.ParseFromString(truth.tokens[i]) && result.tokens[i].id() == token.id();
  }
  if (stopped) {
    same = same && truth.reason == v1::FINISH_REASON_STOP &&
           truth.text.find(truth.request.stop(0)) == std::string::npos;
  }
  if (same) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the undisturbed cluster and one process disagree: ",
                                          truth.request.ShortDebugString()));
}

// Bytes in the middle of a text that are no part of a longer character.
std::string StopStringFor(const std::string& text) {
  size_t begin = static_cast<size_t>(static_cast<double>(text.size()) * kStopAt);
  const auto plain = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  while (begin < text.size() && !plain(text[begin])) ++begin;
  size_t end = begin;
  while (end < text.size() && end - begin < kStopBytes && plain(text[end])) ++end;
  return text.substr(begin, end - begin);
}

}  // namespace

absl::StatusOr<std::vector<Truth>> FindTruths(const std::string& model, int count,
                                              uint32_t tokens_max, uint64_t seed,
                                              Cluster& cluster) {
  BATON_ASSIGN_OR_RETURN(
      EngineParts parts,
      EngineParts::Create({.model = model, .threads = 1, .kv_memory_bytes = 16 << 20}));
  LocalRunner runner(&parts);
  std::mt19937_64 random(seed);
  std::vector<Truth> truths;
  for (v1::GenerateRequest request :
       MakeWorkload({.requests = count, .seed = seed, .vocab = 256, .output_max = 1})) {
    request.set_max_tokens(1 + static_cast<uint32_t>(random() % tokens_max));
    request.mutable_stopping()->set_ignore_eos(true);
    BATON_ASSIGN_OR_RETURN(Truth truth, Undisturbed(cluster, request));
    BATON_RETURN_IF_ERROR(CheckAgainstOneProcess(runner, truth));
    if (random() % 4 == 0) {
      const std::string stop = StopStringFor(truth.text);
      if (!stop.empty()) {
        request.add_stop(stop);
        BATON_ASSIGN_OR_RETURN(truth, Undisturbed(cluster, request));
        BATON_RETURN_IF_ERROR(CheckAgainstOneProcess(runner, truth));
      }
    }
    truths.push_back(std::move(truth));
  }
  return truths;
}

ChaosStreams::ChaosStreams(Cluster* cluster, const std::vector<Truth>* truths, int count,
                           uint64_t seed)
    : cluster_(cluster), truths_(truths) {
  for (int i = 0; i < count; ++i) {
    clients_.emplace_back([this, seed, i] { RunClient(seed * 1000 + static_cast<uint64_t>(i)); });
  }
}

ChaosStreams::~ChaosStreams() { Stop(); }

void ChaosStreams::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& client : clients_) client.join();
  clients_.clear();
}

StreamCounts ChaosStreams::counts() const {
  absl::MutexLock lock(&mutex_);
  return counts_;
}

bool ChaosStreams::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void ChaosStreams::PauseOrStop(Duration duration) {
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(duration));
}

void ChaosStreams::RunClient(uint64_t seed) {
  std::mt19937_64 random(seed);
  while (!stopping()) RunOne((*truths_)[random() % truths_->size()], random);
}

// What all calls of a request gave together.
struct ChaosStreams::Received {
  absl::Status status;
  std::vector<std::string> tokens;  // Each as sent.
  std::vector<TokenId> ids;
  std::string text;
  std::string tail;  // What came without a token: the end of an answer, which a new call repeats.
  v1::Finished finished;
  uint32_t retries = 0;
  uint64_t resumed = 0;
  uint64_t refused = 0;
  bool without_hint = false;  // A refusal that does not say when to come back.
  bool cancelled = false;
  Instant asked = Now();
  std::optional<Instant> last;  // Delta.
  double first_token_ms = 0;
  double longest_pause_ms = 0;

  void Add(const v1::Delta& delta) {
    const Instant now = Now();
    if (last.has_value()) {
      longest_pause_ms = std::max(longest_pause_ms, ToMilliseconds(now - *last));
    } else {
      first_token_ms = ToMilliseconds(now - asked);
    }
    last = now;
    (delta.tokens_size() > 0 ? text : tail) += delta.text();
    for (const v1::Token& token : delta.tokens()) {
      tokens.push_back(token.SerializeAsString());
      ids.push_back(token.id());
    }
  }
};

void ChaosStreams::RunOne(const Truth& truth, std::mt19937_64& random) {
  std::optional<size_t> tokens_max;
  if (random() % 32 == 0) tokens_max = 1 + random() % truth.tokens.size();
  Judge(truth, Ask(truth, tokens_max));
}

ChaosStreams::Received ChaosStreams::Ask(const Truth& truth, std::optional<size_t> tokens_max) {
  Received received;
  while (AskOnce(truth, tokens_max, &received)) {
  }
  received.text += received.tail;
  return received;
}

bool ChaosStreams::AskOnce(const Truth& truth, std::optional<size_t> tokens_max,
                           Received* received) {
  // In this order, the reverse of RouterGoes'.
  const int deaths = router_deaths_;
  const bool router_up = router_up_;
  v1::GenerateRequest request = truth.request;
  request.mutable_generated_ids()->Assign(received->ids.begin(), received->ids.end());
  received->tail.clear();
  const Answer answer = cluster_->Generate(request, kDeadline, [&](const v1::Delta& delta) {
    received->Add(delta);
    received->cancelled = tokens_max.has_value() && received->tokens.size() >= *tokens_max;
    return !received->cancelled;
  });
  received->status = answer.status;
  received->finished = answer.finished;
  received->retries += answer.finished.retries();
  if (received->cancelled) return false;
  if (absl::IsUnavailable(answer.status) && (!router_up || router_deaths_ != deaths)) {
    ++received->resumed;
    PauseOrStop(kAfterBreak);
    return true;  // To its end, also while stopping: it was promised.
  }
  if (absl::IsResourceExhausted(answer.status) && received->tokens.empty()) {
    ++received->refused;
    received->without_hint = !answer.retry_after_ms.has_value();
    if (received->without_hint) return false;
    PauseOrStop(std::chrono::milliseconds(*answer.retry_after_ms));
    return !stopping();
  }
  return false;
}

void ChaosStreams::Judge(const Truth& truth, const Received& received) {
  const absl::Status& status = received.status;
  const bool prefix =
      received.tokens.size() <= truth.tokens.size() &&
      std::equal(received.tokens.begin(), received.tokens.end(), truth.tokens.begin()) &&
      truth.text.starts_with(received.text);
  const bool whole = received.tokens.size() == truth.tokens.size() && received.text == truth.text &&
                     received.finished.reason() == truth.reason;
  absl::MutexLock lock(&mutex_);
  ++counts_.requests;
  counts_.tokens += received.tokens.size();
  counts_.refused += received.refused;
  counts_.resumed += received.resumed;
  counts_.retries += received.retries;
  // A call that ends while its client hangs up may be lacking what it had not read yet.
  if (!prefix || (status.ok() && !whole && !received.cancelled)) {
    ++counts_.differ;
    if (counts_.first_difference.empty()) {
      counts_.first_difference = absl::StrCat(
          received.tokens.size(), " of ", truth.tokens.size(), " tokens, ", received.resumed,
          " calls resumed, ", status.ToString(), "; ", truth.request.ShortDebugString());
    }
  } else if (received.cancelled) {
    ++counts_.cancelled;
  } else if (status.ok()) {
    ++counts_.completed;
    counts_.first_tokens_ms.push_back(received.first_token_ms);
    counts_.pauses_ms.push_back(received.longest_pause_ms);
    if (received.retries > 0) {
      ++counts_.retried;
      counts_.retried_pauses_ms.push_back(received.longest_pause_ms);
    }
  } else if (received.refused == 0 || received.without_hint || !absl::IsResourceExhausted(status)) {
    ++counts_.failed;
    ++counts_.failures[status.ToString()];
  }
}

}  // namespace baton
