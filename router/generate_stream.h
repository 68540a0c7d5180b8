// One Generate call: its checks, its outbox, its end.
//
// A thread of the text pool runs Begin, gRPC's the reactions, the router's the ClientStream
// methods. Deletes itself when gRPC is done with the call.
#ifndef BATON_ROUTER_GENERATE_STREAM_H_
#define BATON_ROUTER_GENERATE_STREAM_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/request/model_profile.h"
#include "proto/inference.grpc.pb.h"
#include "router/client_stream.h"
#include "router/response_outbox.h"
#include "router/router_loop.h"

namespace baton {

class GenerateStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                             public ClientStream {
 public:
  // All outlive the call. `key_name`: whose API key it came with, for the log; may be empty.
  GenerateStream(grpc::CallbackServerContext* context, RouterLoop* loop, RouterMetrics* metrics,
                 std::string key_name);

  // Either of these once, first. Begin checks the request and hands it to the router's thread, or
  // ends the call; Refuse ends it, under the client's request id or `drawn_id`.
  void Refuse(const absl::Status& status, uint64_t drawn_id);
  void Begin(const grpc::ByteBuffer& request, const ModelProfile& model,
             const std::function<uint64_t()>& random);

  void Accept() override;
  bool Write(v1::Delta delta, uint64_t bytes) override;
  uint64_t TakeWrittenBytes() override;
  void End(const absl::Status& status, const v1::Finished& finished,
           uint32_t retry_after_ms) override;
  void Cut() override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What comes next: a write, the end, or neither.
  struct Step {
    bool write = false;
    std::optional<absl::Status> end;
    bool first = false;  // Nothing was written before.

    // If not, `this` may be gone already: whoever has the step of the end may have taken it.
    bool any() const { return write || end.has_value(); }
  };

  absl::Status TryBegin(const grpc::ByteBuffer& bytes, const ModelProfile& model,
                        const std::function<uint64_t()>& random);
  absl::Status TakeRequestId(uint64_t drawn);
  void EndRefused(const absl::Status& status);
  // Puts Started before whatever comes first.
  void PushStarted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // To be taken at once, without the lock, after whatever may have made one possible.
  Step NextStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // REQUIRES: step.any(). `this` may be gone when it returns.
  void Take(const Step& step);
  // The call's context does not know before gRPC has the reactor.
  bool cancelled() {
    absl::MutexLock lock(&mutex_);
    return cancelled_;
  }
  // `refused`: nothing was written.
  void FinishCall(const absl::Status& status, bool refused);

  grpc::CallbackServerContext* const context_;
  RouterLoop* const loop_;
  RouterMetrics* const metrics_;
  const RequestId id_;
  const std::string key_name_;
  const Instant received_ = Now();
  std::string request_id_;      // For people. Constant once Begin has submitted the request.
  bool submitted_ = false;      // Constant once Begin is over.
  grpc::ByteBuffer in_flight_;  // Of the write that is under way.

  absl::Mutex mutex_;
  // Until the request is accepted: a refused call has no messages.
  std::optional<v1::Started> started_ ABSL_GUARDED_BY(mutex_);
  ResponseOutbox outbox_ ABSL_GUARDED_BY(mutex_);
  // Begin, a write or the end is under way; the next step has to wait.
  bool busy_ ABSL_GUARDED_BY(mutex_) = true;
  bool responded_ ABSL_GUARDED_BY(mutex_) = false;  // A write has begun.
  uint64_t in_flight_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // A write failed.
  uint64_t written_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace baton

#endif  // BATON_ROUTER_GENERATE_STREAM_H_
