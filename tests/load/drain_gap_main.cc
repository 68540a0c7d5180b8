// drain_gap: how long streams stand still when their decode worker goes: with their KV, because it
// was told to drain, or without, because it was killed and another one computes everything again.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/model/testing/tiny_model.h"
#include "tests/support/cluster.h"

ABSL_FLAG(int32_t, streams, 16, "Streams that run when the worker goes.");
ABSL_FLAG(uint32_t, prompt_tokens, 512, "Of each.");
ABSL_FLAG(uint32_t, max_tokens, 640, "Of each answer.");
ABSL_FLAG(uint32_t, tokens_before, 48, "The worker goes when every stream has so many.");
ABSL_FLAG(uint32_t, layers, 8, "Of the model, whose weights are random.");
ABSL_FLAG(uint32_t, hidden, 768, "Its hidden size; 64 for each head.");
ABSL_FLAG(uint32_t, repeats, 3, "Of each way to go, in turns.");

namespace baton {
namespace {

constexpr Duration kDeadline = std::chrono::minutes(5);

struct Stream {
  Answer answer;
  double pause_before_ms = 0;  // The longest between two deltas before the worker went.
  double pause_after_ms = 0;   // And from then on.
};

class Streams {
 public:
  explicit Streams(Cluster* cluster) : streams_(Count()), tokens_(Count()) {
    for (size_t i = 0; i < Count(); ++i) {
      clients_.emplace_back([this, cluster, i] { Run(*cluster, i); });
    }
  }
  ~Streams() { Join(); }
  static size_t Count() { return static_cast<size_t>(absl::GetFlag(FLAGS_streams)); }

  bool AllHave(size_t tokens) {
    absl::MutexLock lock(&mutex_);
    const auto all = [this, tokens]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return std::all_of(tokens_.begin(), tokens_.end(),
                         [tokens](size_t count) { return count >= tokens; });
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&all), absl::FromChrono(kDeadline));
  }
  void Goes() {
    absl::MutexLock lock(&mutex_);
    gone_ = true;
  }
  std::vector<Stream> Finish() {
    Join();
    return std::move(streams_);
  }

 private:
  void Join() {
    for (std::thread& client : clients_) client.join();
    clients_.clear();
  }
  void Run(Cluster& cluster, size_t index) {
    v1::GenerateRequest request;
    for (uint32_t i = 0; i < absl::GetFlag(FLAGS_prompt_tokens); ++i) {
      request.mutable_prompt_ids()->add_ids(static_cast<int32_t>((7 * i + 31 * index) % 256));
    }
    request.set_max_tokens(absl::GetFlag(FLAGS_max_tokens));
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_ignore_eos(true);
    Stream& stream = streams_[index];
    Instant last{};
    stream.answer = cluster.Generate(request, kDeadline, [&](const v1::Delta& delta) {
      const Instant now = Now();
      absl::MutexLock lock(&mutex_);
      double& longest = gone_ ? stream.pause_after_ms : stream.pause_before_ms;
      if (last != Instant{}) longest = std::max(longest, ToMilliseconds(now - last));
      last = now;
      tokens_[index] += static_cast<size_t>(delta.tokens_size());
      return true;
    });
  }

  std::vector<Stream> streams_;
  absl::Mutex mutex_;
  std::vector<size_t> tokens_ ABSL_GUARDED_BY(mutex_);
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> clients_;
};

absl::Status DrainDecode(Cluster& cluster, int index) {
  grpc::ClientContext context;
  v1::DrainWorkerRequest request;
  request.set_address(cluster.decode_address(index));
  v1::DrainWorkerResponse response;
  const grpc::Status told = cluster.stub().DrainWorker(&context, request, &response);
  if (!told.ok()) return absl::UnavailableError(told.error_message());
  return absl::OkStatus();
}

bool AllReady(const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 3; }

// All streams run on one decode worker while another one is there, and then the first goes.
absl::StatusOr<std::vector<Stream>> RunOnce(Cluster& cluster, bool drain) {
  BATON_RETURN_IF_ERROR(DrainDecode(cluster, 1));
  BATON_RETURN_IF_ERROR(cluster.decode(1).Wait(kDeadline).status());
  Streams streams(&cluster);
  if (!streams.AllHave(1)) return absl::DeadlineExceededError("the streams did not begin");
  BATON_RETURN_IF_ERROR(cluster.RestartDecode(1));
  const bool ready = cluster.WaitUntil(AllReady);
  if (!ready || !streams.AllHave(absl::GetFlag(FLAGS_tokens_before))) {
    return absl::DeadlineExceededError("the streams do not run");
  }
  streams.Goes();
  if (drain) {
    BATON_RETURN_IF_ERROR(DrainDecode(cluster, 0));
  } else {
    cluster.decode(0).Signal(SIGKILL);
  }
  std::vector<Stream> result = streams.Finish();
  BATON_RETURN_IF_ERROR(cluster.decode(0).Wait(kDeadline).status());
  BATON_RETURN_IF_ERROR(cluster.RestartDecode(0));
  if (!cluster.WaitUntil(AllReady)) return absl::DeadlineExceededError("a worker did not return");
  return result;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

absl::Status Print(bool drain, const std::vector<Stream>& streams) {
  std::vector<double> before, after;
  uint32_t retries = 0;
  for (const Stream& stream : streams) {
    BATON_RETURN_IF_ERROR(stream.answer.status);
    before.push_back(stream.pause_before_ms);
    after.push_back(stream.pause_after_ms);
    retries += stream.answer.finished.retries();
  }
  std::printf("%-8s  %8.0f  %8.0f  %8.0f  %8.0f  %7u\n", drain ? "drained" : "killed",
              Median(before), *std::max_element(before.begin(), before.end()), Median(after),
              *std::max_element(after.begin(), after.end()), retries);
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status RunAll() {
  const TemporaryFolder model;
  const uint32_t hidden = absl::GetFlag(FLAGS_hidden);
  TinyModelOptions options;
  options.layers = absl::GetFlag(FLAGS_layers);
  options.hidden = hidden;
  options.intermediate = hidden * 11 / 4;
  options.heads = hidden / 64;
  options.kv_heads = std::max(1u, options.heads / 4);
  options.context_tokens = 4096;
  options.deviation = 0.05f;
  options.dtype = DType::kBF16;
  BATON_RETURN_IF_ERROR(WriteTinyModel(model.path(), options));
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster,
                         Cluster::Start({.model = model.path(),
                                         .prefill = 1,
                                         .decode = 2,
                                         .worker_flags = {"--kv_memory=512MiB"},
                                         .decode_flags = {},
                                         .router_flags = {}}));
  std::printf("%-8s  %-18s  %-18s  %7s\n%-8s  %8s  %8s  %8s  %8s\n", "", "pause before, ms",
              "pause after, ms", "retries", "worker", "median", "longest", "median", "longest");
  for (uint32_t i = 0; i < absl::GetFlag(FLAGS_repeats); ++i) {
    for (const bool drain : {true, false}) {
      BATON_ASSIGN_OR_RETURN(const std::vector<Stream> streams, RunOnce(*cluster, drain));
      BATON_RETURN_IF_ERROR(Print(drain, streams));
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "drain_gap",
       .summary = "Measures how long streams stand still when their decode worker is drained, and "
                  "when it is killed.",
       .usage = "Usage: BATON_BIN_DIR=build/release/bin drain_gap [flags]",
       .version = baton::Version()});
  const absl::Status status = baton::RunAll();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  return 1;
}
