// Faults in the middle of streams, for tests with clusters of real processes.
#ifndef BATON_TESTS_SUPPORT_FAULTS_H_
#define BATON_TESTS_SUPPORT_FAULTS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "common/base/clock.h"
#include "proto/inference.pb.h"
#include "tests/support/cluster.h"

namespace baton {

// What happens, and when: once so many streams have given so many tokens each.
struct Fault {
  std::function<void()> happens = nullptr;
  size_t streams = 0;
  size_t tokens = 0;
};

// Runs all requests at once. Expects that the fault's time comes within 30 s.
std::vector<Answer> RunThrough(Cluster& cluster, const std::vector<v1::GenerateRequest>& requests,
                               Duration timeout, const Fault& fault);

// Of two decode workers, one that runs streams: if the path to the other was not probed yet, all
// went there.
int BusyDecode(Cluster& cluster);

uint32_t Retries(const std::vector<Answer>& answers);

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_FAULTS_H_
