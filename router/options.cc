#include "router/options.h"

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/rpc/message_limit.h"

ABSL_FLAG(
    std::string, model, "",
    "Folder of the model that the workers serve, as Hugging Face lays it out; the router reads its "
    "tokenizer and configuration. Required.");
ABSL_FLAG(std::string, prefill, "",
          "Prefill workers: host:port, separated by commas. A DNS name stands for all its "
          "addresses and is "
          "resolved again and again.");
ABSL_FLAG(std::string, decode, "", "Decode workers, as --prefill. At least one is required.");
ABSL_FLAG(uint32_t, drain_seconds, 30,
          "After SIGTERM, how long running streams may take to finish before they are ended.");
ABSL_FLAG(uint32_t, connection_seconds, 0,
          "After so long a client is told to connect anew for its next calls, so that clients come "
          "to routers that were added; running streams stay. 0: never.");
ABSL_FLAG(uint32_t, resolve_seconds, 5, "How often DNS names of workers are resolved.");
ABSL_FLAG(uint32_t, queue_requests, 1024, "Most requests that wait for a worker.");
ABSL_FLAG(uint64_t, queue_tokens, 1 << 20, "Most tokens of requests that wait for a worker.");
ABSL_FLAG(uint32_t, queue_seconds, 60, "Longest wait of a request for a worker.");
ABSL_FLAG(uint32_t, request_seconds, 3600, "Longest life of a request, whatever its deadline.");
ABSL_FLAG(
    uint32_t, retries, 3,
    "How often one request is moved after failures of workers in a row. One that was given 64 "
    "tokens or more since the last one begins anew.");
ABSL_FLAG(uint32_t, streams_max, 8192, "Most calls inside the router at once.");
ABSL_FLAG(
    uint64_t, prefill_queue_tokens, 8192,
    "A prefill worker that has work is given no more tokens to compute than this, judged by how "
    "many were in prefix caches lately.");
ABSL_FLAG(uint32_t, local_prefill_tokens, 32,
          "A decode worker that finds all but so many tokens of a request in its prefix cache "
          "computes these itself, instead of waiting for a prefill worker.");
ABSL_FLAG(baton::ByteSize, client_buffer, baton::ByteSize{1 << 20},
          "What one client may leave unread before its request is ended.");
ABSL_FLAG(
    uint32_t, client_read_seconds, 30,
    "How long a client may take to read the rest of its call when the request has ended; then "
    "the call is cut.");
ABSL_FLAG(std::string, model_fingerprint, "",
          "Accept only workers whose model has this fingerprint (hexadecimal). Empty: that of the "
          "first.");
ABSL_FLAG(bool, mixed_numerics, false,
          "Accept workers of different numerics: results may then depend on the worker.");

ABSL_FLAG(std::string, worker_tls_ca, "",
          "PEM file of authorities, one of which must have signed the certificates of the workers. "
          "Not given: the sessions with workers are plaintext.");
ABSL_FLAG(std::string, worker_tls_cert, "",
          "PEM file: the certificate that the router shows to workers that want one (their "
          "--tls_client_ca). With --worker_tls_key.");
ABSL_FLAG(std::string, worker_tls_key, "", "PEM file: the private key of --worker_tls_cert.");
ABSL_FLAG(std::string, worker_tls_server_name, "",
          "The name that the certificate of every worker must have. Empty: the IP address at which "
          "the router reaches the worker, also where --prefill or --decode say a DNS name.");
ABSL_FLAG(std::string, api_keys, "",
          "File of API keys, without one of which no call of Inference is answered: a line each, "
          "NAME KEY, then \"admin\" if it may also do what operators do; # begins a comment. Read "
          "again when it changes. Not given: whoever reaches the port may call.");

namespace baton {
namespace {

std::vector<std::string> List(const std::string& text) {
  return absl::StrSplit(text, ',', absl::SkipWhitespace());
}

absl::Status CheckPositive(const std::string& flag, uint64_t value) {
  if (value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " must be at least 1"));
}

absl::StatusOr<std::string> Fingerprint() {
  const std::string hex = absl::GetFlag(FLAGS_model_fingerprint);
  const bool valid =
      hex.size() % 2 == 0 && hex.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  if (!valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model_fingerprint: ", hex, " is not hexadecimal"));
  }
  return absl::HexStringToBytes(hex);
}

absl::StatusOr<std::shared_ptr<TlsFiles>> WorkerTls() {
  return LoadClientTls(
      {.authorities = {"worker_tls_ca", absl::GetFlag(FLAGS_worker_tls_ca)},
       .certificate = {"worker_tls_cert", absl::GetFlag(FLAGS_worker_tls_cert)},
       .key = {"worker_tls_key", absl::GetFlag(FLAGS_worker_tls_key)},
       .server_name = {"worker_tls_server_name", absl::GetFlag(FLAGS_worker_tls_server_name)}});
}

}  // namespace

absl::StatusOr<RouterOptions> RouterOptionsFromFlags() {
  RouterOptions options;
  options.model = absl::GetFlag(FLAGS_model);
  options.version = Version();
  options.workers.prefill = List(absl::GetFlag(FLAGS_prefill));
  options.workers.decode = List(absl::GetFlag(FLAGS_decode));
  if (options.workers.decode.empty()) {
    return absl::InvalidArgumentError(
        "--decode is required: host:port of at least one decode worker");
  }
  BATON_RETURN_IF_ERROR(CheckPositive("resolve_seconds", absl::GetFlag(FLAGS_resolve_seconds)));
  BATON_RETURN_IF_ERROR(CheckPositive("queue_requests", absl::GetFlag(FLAGS_queue_requests)));
  BATON_RETURN_IF_ERROR(CheckPositive("request_seconds", absl::GetFlag(FLAGS_request_seconds)));
  BATON_RETURN_IF_ERROR(CheckPositive("streams_max", absl::GetFlag(FLAGS_streams_max)));
  options.workers.resolve_interval = std::chrono::seconds(absl::GetFlag(FLAGS_resolve_seconds));
  options.loop.streams_max = absl::GetFlag(FLAGS_streams_max);
  options.loop.client_read_max = std::chrono::seconds(absl::GetFlag(FLAGS_client_read_seconds));
  options.texts.jobs_max = absl::GetFlag(FLAGS_streams_max);
  CoreOptions& core = options.loop.core;
  core.queue.requests = absl::GetFlag(FLAGS_queue_requests);
  core.queue.tokens = absl::GetFlag(FLAGS_queue_tokens);
  core.queue_time_max = std::chrono::seconds(absl::GetFlag(FLAGS_queue_seconds));
  core.request_time_max = std::chrono::seconds(absl::GetFlag(FLAGS_request_seconds));
  core.retries_max = absl::GetFlag(FLAGS_retries);
  core.prefill_tokens_max = absl::GetFlag(FLAGS_prefill_queue_tokens);
  core.local_prefill_tokens_max = absl::GetFlag(FLAGS_local_prefill_tokens);
  core.client_buffer_bytes_max = absl::GetFlag(FLAGS_client_buffer).bytes;
  BATON_ASSIGN_OR_RETURN(core.cluster.model_fingerprint, Fingerprint());
  core.cluster.mixed_numerics = absl::GetFlag(FLAGS_mixed_numerics);
  options.loop.session.channel.message_bytes_max = MessageBytesMaxFromFlags();
  BATON_ASSIGN_OR_RETURN(options.loop.session.channel.tls, WorkerTls());
  options.loop.session.channel.tls_server_name = absl::GetFlag(FLAGS_worker_tls_server_name);
  BATON_ASSIGN_OR_RETURN(options.rpc, RpcServerOptionsFromFlags());
  options.rpc.connection_age_max = std::chrono::seconds(absl::GetFlag(FLAGS_connection_seconds));
  if (const std::string keys = absl::GetFlag(FLAGS_api_keys); !keys.empty()) {
    BATON_ASSIGN_OR_RETURN(options.keys, ApiKeys::Load(keys));
  }
  return options;
}

Duration DrainGraceFromFlags() { return std::chrono::seconds(absl::GetFlag(FLAGS_drain_seconds)); }

}  // namespace baton
