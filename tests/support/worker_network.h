// A network namespace for each worker, all on one bridge: what two workers say to each other can be
// cut while everybody else still reaches both.
#ifndef BATON_TESTS_SUPPORT_WORKER_NETWORK_H_
#define BATON_TESTS_SUPPORT_WORKER_NETWORK_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

class WorkerNetwork {
 public:
  // kUnavailable, with the reason: this machine does not let us (it takes root and iproute2). Also
  // removes networks whose processes were killed.
  static absl::StatusOr<std::unique_ptr<WorkerNetwork>> Create(int prefill, int decode);
  // REQUIRES: no worker runs in it any more.
  ~WorkerNetwork();
  WorkerNetwork(const WorkerNetwork&) = delete;
  WorkerNetwork& operator=(const WorkerNetwork&) = delete;

  // As ClusterOptions::place: the command runs inside and listens there.
  void Place(const std::string& role, int index, std::vector<std::string>* command) const;

  // From now on nothing passes between the two, on old connections or new ones, and neither is
  // told.
  absl::Status Cut(int prefill, int decode);
  absl::Status Mend(int prefill, int decode);

 private:
  WorkerNetwork(int prefill, int decode);
  absl::Status Make();
  absl::Status MakeHost(const std::string& name, const std::string& address);
  absl::Status ChangeNeighbours(const char* verb, const char* link, int prefill, int decode);
  std::string NameOf(const std::string& role, int index) const;
  std::string AddressOf(const std::string& role, int index) const;

  const int prefill_;
  const int decode_;
  const std::string prefix_;   // Of all names.
  const std::string network_;  // The first three numbers of all addresses.
};

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_WORKER_NETWORK_H_
