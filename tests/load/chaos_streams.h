// Clients that keep a cluster busy and compare every stream with that of an undisturbed run.
#ifndef BATON_TESTS_LOAD_CHAOS_STREAMS_H_
#define BATON_TESTS_LOAD_CHAOS_STREAMS_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "tests/support/cluster.h"

namespace baton {

// A request and what it gave while nothing was disturbed.
struct Truth {
  v1::GenerateRequest request;
  std::vector<std::string> tokens;  // Each with its log-probabilities, as sent.
  std::string text;
  v1::FinishReason reason{};
};

// Requests of mixed length, prefix, sampling and end, with their streams: tokens are those of one
// process without a network, the rest is what `cluster` said before anything happened to it.
absl::StatusOr<std::vector<Truth>> FindTruths(const std::string& model, int count,
                                              uint32_t tokens_max, uint64_t seed, Cluster& cluster);

struct StreamCounts {
  uint64_t requests = 0;
  uint64_t completed = 0;
  uint64_t cancelled = 0;  // By their clients; what they had got was right.
  uint64_t refused = 0;  // Calls that got RESOURCE_EXHAUSTED before the first token, and its hint.
  uint64_t resumed = 0;  // Calls that went on where a killed router had left off.
  uint64_t failed = 0;
  uint64_t differ = 0;
  uint64_t retried = 0;  // Completed with at least one retry.
  uint64_t retries = 0;
  uint64_t tokens = 0;
  // Of each completed stream: how long until its first token, and the longest pause after that; of
  // those with retries once more.
  std::vector<double> first_tokens_ms;
  std::vector<double> pauses_ms;
  std::vector<double> retried_pauses_ms;
  std::map<std::string, int> failures;  // What the failed ones said.
  std::string first_difference;
};

class ChaosStreams {
 public:
  // Starts `count` clients. What is given outlives this.
  ChaosStreams(Cluster* cluster, const std::vector<Truth>* truths, int count, uint64_t seed);
  // As Stop.
  ~ChaosStreams();

  // No more requests; returns when those under way have ended.
  void Stop();
  StreamCounts counts() const;
  // Calls that are under way before the router is up again may break, and go on with what they have
  // got.
  void RouterGoes() { router_up_ = false, ++router_deaths_; }
  void RouterIsBack() { router_up_ = true; }

 private:
  struct Received;
  void RunClient(uint64_t seed);
  void RunOne(const Truth& truth, std::mt19937_64& random);
  // `tokens_max`: the client hangs up after so many.
  Received Ask(const Truth& truth, std::optional<size_t> tokens_max);
  // One call for what is still missing; whether another one is needed.
  bool AskOnce(const Truth& truth, std::optional<size_t> tokens_max, Received* received);
  void Judge(const Truth& truth, const Received& received);
  bool stopping() const;
  void PauseOrStop(Duration duration);

  Cluster* const cluster_;
  const std::vector<Truth>* const truths_;
  std::atomic<bool> router_up_{true};
  std::atomic<int> router_deaths_{0};
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  StreamCounts counts_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> clients_;
};

}  // namespace baton

#endif  // BATON_TESTS_LOAD_CHAOS_STREAMS_H_
