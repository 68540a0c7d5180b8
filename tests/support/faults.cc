#include "tests/support/faults.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "absl/synchronization/mutex.h"

namespace baton {

std::vector<Answer> RunThrough(Cluster& cluster, const std::vector<v1::GenerateRequest>& requests,
                               Duration timeout, const Fault& fault) {
  std::vector<Answer> answers(requests.size());
  absl::Mutex mutex;
  size_t under_way = 0;
  std::vector<std::thread> clients;
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back([&, i] {
      size_t tokens = 0;
      bool counted = false;
      answers[i] = cluster.Generate(requests[i], timeout, [&](const v1::Delta& delta) {
        tokens += static_cast<size_t>(delta.tokens_size());
        if (tokens >= fault.tokens && !counted) {
          counted = true;
          absl::MutexLock lock(&mutex);
          ++under_way;
        }
        return true;
      });
    });
  }
  if (fault.happens != nullptr) {
    {
      absl::MutexLock lock(&mutex);
      const auto enough = [&] { return under_way >= fault.streams; };
      EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(30)));
    }
    fault.happens();
  }
  for (std::thread& client : clients) client.join();
  return answers;
}

int BusyDecode(Cluster& cluster) {
  int busy = -1;
  EXPECT_TRUE(cluster.WaitUntil([&](const v1::GetClusterResponse& status) {
    for (const v1::WorkerStatus& worker : status.workers()) {
      if (worker.load().sequences_running() == 0) continue;
      for (const int i : {0, 1}) {
        if (worker.address() == cluster.decode_address(i)) busy = i;
      }
    }
    return busy >= 0;
  }));
  return std::max(busy, 0);
}

uint32_t Retries(const std::vector<Answer>& answers) {
  uint32_t retries = 0;
  for (const Answer& answer : answers) retries += answer.finished.retries();
  return retries;
}

}  // namespace baton
