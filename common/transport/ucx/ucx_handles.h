// Owners of UCX's handles: one context with one worker, its listener, and endpoints.
//
// Connections are made by socket address and listener. Endpoints made from worker addresses would
// do without a listener, but in UCX 1.13 a peer that dies while such a connection comes up trips an
// assertion in the survivor (a wireup reply that is purged while pending); Debian builds UCX with
// assertions on.
//
// Everything that Baton sets in UCX is set here. Used by one thread at a time.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_HANDLES_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_HANDLES_H_

#include <ucp/api/ucp.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/transport/transport.h"
#include "common/transport/ucx/ucx_address.h"

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
  // As Transport::UseDeviceMemory.
  absl::Status UseCudaMemory(uint32_t devices, std::span<const MutableSpan> regions);
  // UCX's handle of the region that `data` lies in; null: of none.
  ucp_mem_h CudaMemoryAt(const void* data) const;
  // For logs: those whose memory UCX can send from and receive into, "host cuda".
  std::string memory_kinds() const;

 private:
  struct CudaMemory {
    MutableSpan region;
    ucp_mem_h handle = nullptr;
  };

  UcxWorker() = default;
  absl::Status Init();
  void DropCudaMemory();

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  uint64_t memory_types_ = 0;  // Bits of UCX's.
  std::vector<CudaMemory> cuda_memory_;
};

// Accepts connections for a worker.
class UcxListener {
 public:
  // `wanted` is called with `argument` from the worker's progress for every connection request,
  // which UcxEndpoint::Accept or Reject then answers. kUnavailable: the address cannot be listened
  // on.
  static absl::StatusOr<std::unique_ptr<UcxListener>> Create(const UcxWorker& worker,
                                                             const SocketAddress& address,
                                                             ucp_listener_conn_callback_t wanted,
                                                             void* argument);

  UcxListener(const UcxListener&) = delete;
  UcxListener& operator=(const UcxListener&) = delete;
  ~UcxListener();

  uint16_t port() const { return port_; }
  void Reject(ucp_conn_request_h request) const;

 private:
  explicit UcxListener(ucp_listener_h listener) : listener_(listener) {}

  const ucp_listener_h listener_;
  uint16_t port_ = 0;
};

// An endpoint with peer error handling. Closed by force when it goes, so that nothing lands after.
class UcxEndpoint {
 public:
  // `failed` is called with `argument` from the worker's progress when the peer is lost. Whether
  // anybody is there shows later.
  static absl::StatusOr<UcxEndpoint> Connect(const UcxWorker& worker, const SocketAddress& address,
                                             ucp_err_handler_cb_t failed, void* argument);
  static absl::StatusOr<UcxEndpoint> Accept(const UcxWorker& worker, ucp_conn_request_h request,
                                            ucp_err_handler_cb_t failed, void* argument);

  UcxEndpoint(UcxEndpoint&& other) noexcept
      : worker_(other.worker_), endpoint_(std::exchange(other.endpoint_, nullptr)) {}
  UcxEndpoint& operator=(UcxEndpoint&& other) noexcept {
    std::swap(worker_, other.worker_);
    std::swap(endpoint_, other.endpoint_);
    return *this;
  }
  ~UcxEndpoint();

  ucp_ep_h get() const { return endpoint_; }

 private:
  static absl::StatusOr<UcxEndpoint> Create(const UcxWorker& worker, ucp_ep_params_t params,
                                            ucp_err_handler_cb_t failed, void* argument);
  UcxEndpoint(ucp_worker_h worker, ucp_ep_h endpoint) : worker_(worker), endpoint_(endpoint) {}

  ucp_worker_h worker_;
  ucp_ep_h endpoint_;
};

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_HANDLES_H_
