#include "common/kv_transfer/transfer_agent.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/bounded_queue.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kv_transfer/staging_choice.h"
#include "common/kv_transfer/transfer_core.h"
#include "common/transport/transport.h"
#include "common/transport/ucx/ucx_transport.h"

namespace baton {
namespace {

// Polls between two looks at the commands and the clock.
constexpr int kPollsMax = 32;
// While anything is under way the thread looks at least so often, whatever the descriptors say.
constexpr Duration kSleepMaxBusy = std::chrono::milliseconds(50);
constexpr Duration kSleepMaxIdle = std::chrono::seconds(1);

absl::Status CheckOptions(const TransferOptions& options) {
  if (options.in_flight_bytes_max == 0 || options.message_bytes_max == 0 ||
      options.leases_max == 0 || options.transfers_max == 0 || options.commands_max == 0) {
    return absl::InvalidArgumentError("a limit of the transfer agent is 0");
  }
  if (options.probe_bytes == 0 || options.probe_bytes > Prober::kBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("probe_bytes is ", options.probe_bytes,
                                                   ", not within 1 to ", Prober::kBytesMax));
  }
  return absl::OkStatus();
}

TransferCoreOptions CoreOptions(const TransferOptions& options) {
  return {.sender = {options.in_flight_bytes_max, options.message_bytes_max,
                     options.transfer_deadline, options.force_close_after},
          .receiver = {options.force_close_after},
          .prober = {options.probe_bytes, options.probe_deadline, options.force_close_after}};
}

const char* StagingName(StagingMemory memory) {
  switch (memory) {
    case StagingMemory::kNone:
      return "none";
    case StagingMemory::kPinned:
      return "pinned";
    case StagingMemory::kDevice:
      return "device";
  }
  return "";
}

}  // namespace

class TransferAgent::Impl {
 public:
  Impl(std::unique_ptr<Transport> transport, const TransferOptions& options, const KvArena& arena,
       ChosenStaging chosen, TransferEventSink sink);
  ~Impl();

  absl::Status Start();
  void Stop();

  // False when there is no room: `ordinary` commands leave some for those that must not fail.
  bool Enqueue(TransferCommand command, bool ordinary);
  absl::Status TakePlace(std::atomic<uint32_t>& count, uint32_t count_max, const char* what);

  const TransferOptions options;
  const KvArena& arena;
  const std::string address;
  const std::string transport_name;
  const std::string transport_memory;
  const StagingMemory staging_memory;
  const size_t staging_bytes;
  const std::string staging_reason;
  std::atomic<uint32_t> lease_count{0};     // Opened and not quiesced.
  std::atomic<uint32_t> transfer_count{0};  // Begun and not released.

  TransferStats stats() const {
    absl::MutexLock lock(&stats_mutex_);
    return stats_;
  }

 private:
  // The transfer thread.
  void Run();
  std::vector<TransferCommand> TakeCommands();
  void Sleep();
  void Publish();
  void Emit(TransferEvent event);

  const TransferEventSink sink_;
  const int transport_fd_;

  // Any thread.
  BoundedQueue<TransferCommand> commands_;
  std::atomic<bool> wake_pending_{false};
  std::atomic<bool> stopping_{false};
  int wake_fd_ = -1;
  int epoll_fd_ = -1;
  absl::Mutex stop_mutex_;  // Held while stopping: a second Stop() waits for the first.
  std::thread thread_ ABSL_GUARDED_BY(stop_mutex_);
  mutable absl::Mutex stats_mutex_;
  TransferStats stats_ ABSL_GUARDED_BY(stats_mutex_);

  TransferCore core_;  // The transfer thread's. Last: it uses the queue until it is gone.
};

TransferAgent::Impl::Impl(std::unique_ptr<Transport> transport,
                          const TransferOptions& transfer_options, const KvArena& kv_arena,
                          ChosenStaging chosen, TransferEventSink sink)
    : options(transfer_options),
      arena(kv_arena),
      address(transport->address()),
      transport_name(transport->name()),
      transport_memory(transport->memory_kinds()),
      staging_memory(chosen.staging.sends->memory()),
      staging_bytes(chosen.staging.sends->bytes_total() + chosen.staging.receives->bytes_total()),
      staging_reason(std::move(chosen.reason)),
      sink_(std::move(sink)),
      transport_fd_(transport->event_fd()),
      // Room for every commit, abort and retirement that may follow what was let in.
      commands_(size_t{options.commands_max} + 2 * size_t{options.leases_max} +
                4 * size_t{options.transfers_max}),
      core_(
          std::move(transport), CoreOptions(options), std::move(chosen.staging),
          [this](TransferEvent event) { Emit(std::move(event)); },
          [this] { return TakeCommands(); }, [] { return Now(); }) {}

absl::Status TransferAgent::Impl::Start() {
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (wake_fd_ < 0 || epoll_fd_ < 0) {
    return absl::UnavailableError(absl::StrCat("no event descriptor: ", std::strerror(errno)));
  }
  for (const int fd : {wake_fd_, transport_fd_}) {
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
      return absl::UnavailableError(
          absl::StrCat("the transport '", transport_name, "' cannot be waited for"));
    }
  }
  absl::MutexLock lock(&stop_mutex_);
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

TransferAgent::Impl::~Impl() {
  Stop();
  if (wake_fd_ >= 0) close(wake_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

void TransferAgent::Impl::Stop() {
  absl::MutexLock lock(&stop_mutex_);
  commands_.Close();
  stopping_ = true;
  const uint64_t one = 1;
  if (wake_fd_ >= 0) BATON_CHECK(write(wake_fd_, &one, sizeof(one)) == sizeof(one));
  if (thread_.joinable()) thread_.join();
}

bool TransferAgent::Impl::Enqueue(TransferCommand command, bool ordinary) {
  if (ordinary && commands_.size() >= options.commands_max) return false;
  if (!commands_.TryPush(std::move(command))) return false;
  if (!wake_pending_.exchange(true)) {
    const uint64_t one = 1;
    BATON_CHECK(write(wake_fd_, &one, sizeof(one)) == sizeof(one));
  }
  return true;
}

absl::Status TransferAgent::Impl::TakePlace(std::atomic<uint32_t>& count, uint32_t count_max,
                                            const char* what) {
  if (count.fetch_add(1) < count_max) return absl::OkStatus();
  count.fetch_sub(1);
  return absl::ResourceExhaustedError(absl::StrCat(count_max, " ", what, " are open"));
}

void TransferAgent::Impl::Run() {
  // UCX wants a GPU to be selected; where there are several, it asks an address which one it is
  // about. What fails here fails in the first copy, too.
  static_cast<void>(arena.device().Select());
  while (!stopping_) {
    core_.Advance();
    bool any = false;
    for (int i = 0; i < kPollsMax && core_.Poll(); ++i) any = true;
    Publish();
    if (!any) Sleep();
  }
  core_.Finish();
  Publish();
}

std::vector<TransferCommand> TransferAgent::Impl::TakeCommands() {
  wake_pending_ = false;  // Before taking: a later push wakes again.
  return commands_.TakeAll();
}

void TransferAgent::Impl::Sleep() {
  if (!core_.Arm()) return;
  const Instant now = Now();
  const Instant next =
      std::min(core_.next_deadline(), now + (core_.busy() ? kSleepMaxBusy : kSleepMaxIdle));
  if (next <= now) return;
  // Rounded up: waking a moment too early would spin until the deadline.
  const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(next - now).count();
  epoll_event events[2];
  const int count = epoll_wait(epoll_fd_, events, 2, static_cast<int>(milliseconds));
  for (int i = 0; i < count; ++i) {
    if (events[i].data.fd != wake_fd_) continue;
    uint64_t wakes = 0;
    BATON_CHECK(read(wake_fd_, &wakes, sizeof(wakes)) == sizeof(wakes));
  }
}

void TransferAgent::Impl::Emit(TransferEvent event) {
  if (std::holds_alternative<LeaseQuiesced>(event)) --lease_count;
  if (std::holds_alternative<TransferReleased>(event)) --transfer_count;
  sink_(std::move(event));
}

void TransferAgent::Impl::Publish() {
  const KvReceiver::Counters& in = core_.receiver().counters();
  const KvSender::Counters& out = core_.sender().counters();
  TransferStats stats;
  stats.bytes_sent = out.bytes;
  stats.bytes_received = in.bytes;
  stats.messages_sent = out.messages;
  stats.messages_received = in.messages;
  stats.transfers_acked = out.acked;
  stats.transfers_failed = out.failed;
  stats.leases_filled = in.filled;
  stats.leases_failed = in.failed;
  stats.force_closes = in.force_closes + out.force_closes;
  stats.peers_lost = core_.peers_lost();
  stats.refused_malformed = in.refused_malformed + out.refused_malformed;
  stats.refused_unknown_lease = in.refused_unknown_lease;
  stats.refused_stale = in.refused_stale;
  stats.refused_range = in.refused_range;
  stats.refused_overlap = in.refused_overlap;
  stats.refused_size = in.refused_size;
  stats.checksum_mismatches = in.checksum_mismatches;
  stats.leases_open = static_cast<uint32_t>(core_.receiver().open_count());
  stats.transfers_open = static_cast<uint32_t>(core_.sender().open_count());
  stats.receives_posted = core_.receiver().posted_count();
  stats.bytes_in_flight = core_.sender().in_flight_bytes();
  stats.staging_bytes_sending = core_.staging().sends->bytes_used();
  stats.staging_bytes_receiving = core_.staging().receives->bytes_used();
  absl::MutexLock lock(&stats_mutex_);
  stats_ = stats;
}

// --- The thread-safe face ------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<TransferAgent>> TransferAgent::Create(const TransferOptions& options,
                                                                     const KvArena& arena,
                                                                     TransferEventSink sink) {
  UcxTransportOptions transport_options;
  transport_options.listen_host = options.listen_host;
  transport_options.eager_bytes_max = options.eager_bytes_max;
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, OpenUcxTransport(transport_options));
  return CreateOver(std::move(transport), options, arena, std::move(sink));
}

absl::StatusOr<std::unique_ptr<TransferAgent>> TransferAgent::CreateOver(
    std::unique_ptr<Transport> transport, const TransferOptions& options, const KvArena& arena,
    TransferEventSink sink) {
  BATON_RETURN_IF_ERROR(CheckOptions(options));
  BATON_ASSIGN_OR_RETURN(
      ChosenStaging chosen,
      ChooseStaging(*transport, arena, options.staging_bytes, options.staging_memory));
  auto impl = std::make_unique<Impl>(std::move(transport), options, arena, std::move(chosen),
                                     std::move(sink));
  BATON_RETURN_IF_ERROR(impl->Start());
  return absl::WrapUnique(new TransferAgent(std::move(impl)));
}

TransferAgent::TransferAgent(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TransferAgent::~TransferAgent() = default;

const std::string& TransferAgent::address() const { return impl_->address; }
const std::string& TransferAgent::transport_name() const { return impl_->transport_name; }
const std::string& TransferAgent::transport_memory() const { return impl_->transport_memory; }
const char* TransferAgent::staging() const { return StagingName(impl_->staging_memory); }
const std::string& TransferAgent::staging_reason() const { return impl_->staging_reason; }
size_t TransferAgent::staging_bytes() const { return impl_->staging_bytes; }
TransferStats TransferAgent::stats() const { return impl_->stats(); }
void TransferAgent::Stop() { impl_->Stop(); }

absl::Status TransferAgent::OpenLease(LeaseGrant grant) {
  BATON_RETURN_IF_ERROR(KvReceiver::CheckGrant(impl_->arena, grant));
  BATON_RETURN_IF_ERROR(impl_->TakePlace(impl_->lease_count, impl_->options.leases_max, "leases"));
  if (impl_->Enqueue(OpenCommand{std::move(grant)}, /*ordinary=*/true)) {
    return absl::OkStatus();
  }
  --impl_->lease_count;
  return absl::UnavailableError("the transfer agent takes no commands now");
}

void TransferAgent::RetireLease(LeaseId lease, Epoch epoch) {
  // Fails only when stopped: then everything is retired anyway.
  static_cast<void>(impl_->Enqueue(RetireCommand{lease, epoch}, /*ordinary=*/false));
}

absl::Status TransferAgent::BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks,
                                          TransferShare share) {
  BATON_RETURN_IF_ERROR(KvSender::CheckTicket(impl_->arena, ticket, blocks, share));
  BATON_RETURN_IF_ERROR(
      impl_->TakePlace(impl_->transfer_count, impl_->options.transfers_max, "transfers"));
  BeginCommand begin = {id, std::move(ticket), std::move(blocks), share};
  if (impl_->Enqueue(std::move(begin), /*ordinary=*/true)) return absl::OkStatus();
  --impl_->transfer_count;
  return absl::UnavailableError("the transfer agent takes no commands now");
}

absl::Status TransferAgent::PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) {
  if (impl_->Enqueue(PushCommand{id, layers, tokens}, /*ordinary=*/true)) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError("the transfer agent takes no commands now");
}

absl::Status TransferAgent::CommitTransfer(TransferId id, CommittedToken first_token) {
  if (first_token.logprobs.size() > CommittedToken::kLogprobBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("the first token's log-probabilities take ",
                                                   first_token.logprobs.size(), " bytes, at most ",
                                                   CommittedToken::kLogprobBytesMax, " fit"));
  }
  if (impl_->Enqueue(CommitCommand{id, std::move(first_token)}, /*ordinary=*/false)) {
    return absl::OkStatus();
  }
  return absl::UnavailableError("the transfer agent takes no commands now");
}

void TransferAgent::AbortTransfer(TransferId id) {
  // Fails only when stopped: then every transfer has ended anyway.
  static_cast<void>(impl_->Enqueue(AbortCommand{id}, /*ordinary=*/false));
}

absl::Status TransferAgent::Probe(ProbeId id, std::string address) {
  if (impl_->Enqueue(ProbeCommand{id, std::move(address)}, /*ordinary=*/true)) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError("the transfer agent takes no commands now");
}

}  // namespace baton
