// Where the workers are: fixed addresses, and DNS names that are resolved again and again, each
// address of which is a worker.
//
// Has a thread of its own, because name resolution blocks.
#ifndef BATON_ROUTER_WORKER_DIRECTORY_H_
#define BATON_ROUTER_WORKER_DIRECTORY_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/base/command_line.h"
#include "proto/types.pb.h"

namespace baton {

struct WorkerDirectoryOptions {
  std::vector<std::string> prefill;  // host:port, or dns:///host:port, of an address or a name.
  std::vector<std::string> decode;
  Duration resolve_interval = std::chrono::seconds(5);
};

class WorkerDirectory {
 public:
  // The IP addresses behind a name.
  using Resolver = std::function<absl::StatusOr<std::vector<std::string>>(const std::string& host)>;
  // Called from the directory's thread: at once, then whenever a role's addresses have changed.
  using OnWorkers = std::function<void(v1::Role role, std::vector<std::string> addresses)>;

  // By getaddrinfo; IPv4 addresses where there are any, else IPv6: a worker that has both is one
  // worker.
  static absl::StatusOr<std::vector<std::string>> ResolveBySystem(const std::string& host);

  // kInvalidArgument, naming the address, for one that is malformed.
  static absl::StatusOr<std::unique_ptr<WorkerDirectory>> Start(
      const WorkerDirectoryOptions& options, Resolver resolver, OnWorkers on_workers);
  // Waits for a resolution that is under way.
  ~WorkerDirectory();

 private:
  struct Entry {
    HostPort where;
    bool is_name = false;
    std::vector<std::string>
        addresses;        // As last resolved; kept while the name cannot be resolved.
    bool failed = false;  // The last time; so that it is logged once.
  };

  WorkerDirectory(std::map<v1::Role, std::vector<Entry>> entries, Duration resolve_interval,
                  Resolver resolver, OnWorkers on_workers);
  void Run();
  // Returns whether any entry is a name.
  bool ResolveAll();
  void Resolve(Entry* entry);

  const Duration resolve_interval_;
  const Resolver resolver_;
  const OnWorkers on_workers_;
  std::map<v1::Role, std::vector<Entry>> entries_;  // The thread's own.
  std::map<v1::Role, std::vector<std::string>>
      told_;  // The thread's own: what on_workers_ heard last.
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace baton

#endif  // BATON_ROUTER_WORKER_DIRECTORY_H_
