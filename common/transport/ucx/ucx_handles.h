// Owners of UCX's handles: one context with one worker, and endpoints.
//
// Everything that Baton sets in UCX is set here. Used by one thread at a time.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_HANDLES_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_HANDLES_H_

#include <ucp/api/ucp.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

// kUnavailable for whatever a lost peer causes, kCancelled for what was closed here.
absl::Status UcxStatus(ucs_status_t status, const std::string& what);

// A context and its worker, for active messages, woken by a file descriptor.
class UcxWorker {
 public:
  // kUnavailable when UCX cannot start.
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create();

  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;
  ~UcxWorker();

  ucp_worker_h get() const { return worker_; }
  int event_fd() const { return event_fd_; }
  // UCX's own worker address.
  const std::string& address() const { return address_; }

 private:
  UcxWorker() = default;
  absl::Status Init();

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  std::string address_;
};

// An endpoint with peer error handling. Closed by force when it goes, so that nothing lands after.
class UcxEndpoint {
 public:
  // `failed` is called with `argument` from the worker's progress when the peer is lost.
  // REQUIRES: `address` came from UcxWorker::address(): UCX reads it without checking.
  static absl::StatusOr<UcxEndpoint> Create(const UcxWorker& worker, const std::string& address,
                                            ucp_err_handler_cb_t failed, void* argument);

  UcxEndpoint(UcxEndpoint&& other) noexcept
      : worker_(other.worker_), endpoint_(std::exchange(other.endpoint_, nullptr)) {}
  UcxEndpoint& operator=(UcxEndpoint&&) = delete;
  ~UcxEndpoint();

  ucp_ep_h get() const { return endpoint_; }

 private:
  UcxEndpoint(ucp_worker_h worker, ucp_ep_h endpoint) : worker_(worker), endpoint_(endpoint) {}

  const ucp_worker_h worker_;
  ucp_ep_h endpoint_;
};

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_HANDLES_H_
