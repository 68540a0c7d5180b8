#include "decode_worker/local_runner.h"

#include <string>
#include <utility>

#include "common/base/check.h"

namespace baton {
namespace {

constexpr Incarnation kSelf{1};

}  // namespace

// Nobody sends KV to a process that has no network.
class LocalRunner::NoTransfers final : public TransferPort {
 public:
  const std::string& address() const override { return address_; }
  absl::Status OpenLease(LeaseGrant) override { return NoNetwork(); }
  void RetireLease(LeaseId, Epoch) override { BATON_CHECK(false); }
  absl::Status BeginTransfer(TransferId, Ticket, std::vector<BlockId>) override {
    return NoNetwork();
  }
  absl::Status PushTransfer(TransferId, IndexRange, IndexRange) override { return NoNetwork(); }
  absl::Status CommitTransfer(TransferId, CommittedToken) override { return NoNetwork(); }
  void AbortTransfer(TransferId) override { BATON_CHECK(false); }
  absl::Status Probe(ProbeId, std::string) override { return NoNetwork(); }

 private:
  static absl::Status NoNetwork() {
    return absl::UnimplementedError("this process has no network");
  }

  const std::string address_;
};

class LocalRunner::Inbox final : public EventPort {
 public:
  void Send(Incarnation, v1::Event event) override { events_.push_back(std::move(event)); }
  std::vector<v1::Event> TakeAll() { return std::exchange(events_, {}); }

 private:
  std::vector<v1::Event> events_;
};

LocalRunner::LocalRunner(EngineParts* parts)
    : transfers_(std::make_unique<NoTransfers>()),
      inbox_(std::make_unique<Inbox>()),
      engine_({.incarnation = kSelf,
               .chunk_tokens = parts->options.chunk_tokens,
               .sequences_max = 1,
               .local_prefill = LocalPrefill::kAlways},
              parts->executor.get(), parts->pool.get(), inbox_.get(), transfers_.get(), Now,
              [] { return uint64_t{0}; }) {}

LocalRunner::~LocalRunner() = default;

LocalResult LocalRunner::Run(const v1::Work& work, const OnToken& on_token) {
  LocalResult result;
  v1::Command admit;
  *admit.mutable_admit()->mutable_work() = work;
  engine_.OnCommand(kSelf, admit, Now());
  for (;;) {
    for (v1::Event& event : inbox_->TakeAll()) {
      if (event.has_admitted()) result.admitted = std::move(*event.mutable_admitted());
      if (event.has_rejected()) {
        result.status = absl::Status(static_cast<absl::StatusCode>(event.rejected().code()),
                                     event.rejected().message());
        return result;
      }
      if (event.has_failed()) {
        result.status = absl::Status(static_cast<absl::StatusCode>(event.failed().code()),
                                     event.failed().message());
        return result;
      }
      for (const v1::Tokens::Sequence& sequence : event.tokens().sequences()) {
        for (const v1::Token& token : sequence.tokens()) {
          result.tokens.push_back(token);
          if (on_token && !on_token(result.tokens.back())) result.cancelled = true;
        }
      }
      if (result.cancelled) {
        v1::Command cancel;
        cancel.mutable_cancel()->set_request(work.request());
        engine_.OnCommand(kSelf, cancel, Now());
        inbox_->TakeAll();
        return result;
      }
      if (event.has_finished()) {
        result.finished = event.finished();
        return result;
      }
    }
    engine_.OnTick(Now());
    if (engine_.HasWork()) BATON_CHECK(engine_.Step(Now()) || !engine_.HasWork());
  }
}

}  // namespace baton
