// baton_decode_worker: receives KV caches and generates the tokens.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/secure_random.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/telemetry/log.h"
#include "common/worker/worker.h"
#include "decode_worker/decode_engine.h"
#include "decode_worker/swap_memory.h"

ABSL_FLAG(
    std::string, local_prefill, "auto",
    "Whether this worker computes prompts itself: never, always, or auto (when the router has "
    "no prefill worker).");

ABSL_FLAG(
    std::optional<baton::ByteSize>, swap_memory, std::nullopt,
    "Memory of the host for the KV of sequences that must give way to others, which otherwise "
    "compute it again, e.g. 8GiB. Absent: 4GiB with a GPU, none on the CPU, where --kv_memory "
    "is the same memory.");

namespace {

std::optional<uint64_t> SwapBytesFromFlag() {
  const std::optional<baton::ByteSize> asked = absl::GetFlag(FLAGS_swap_memory);
  return asked.has_value() ? std::optional(asked->bytes) : std::nullopt;
}

absl::StatusOr<baton::LocalPrefill> LocalPrefillFromFlag() {
  const std::string value = absl::GetFlag(FLAGS_local_prefill);
  if (value == "never") return baton::LocalPrefill::kRefused;
  if (value == "auto") return baton::LocalPrefill::kOnRequest;
  if (value == "always") return baton::LocalPrefill::kAlways;
  return absl::InvalidArgumentError(
      absl::StrCat("--local_prefill=", value, " is unknown; choose never, always or auto"));
}

}  // namespace

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_decode_worker",
       .summary = "Receives KV caches from prefill workers and generates the tokens.",
       .usage = "Usage: baton_decode_worker --model DIR [--listen HOST:PORT] [flags]\n"
                "Routers connect to it (baton_router --decode HOST:PORT).",
       .version = baton::Version()});
  if (const absl::Status status = baton::InitLogFromFlags("baton_decode_worker"); !status.ok()) {
    return baton::ReportFailure(status);
  }
  const absl::StatusOr<baton::LocalPrefill> local_prefill = LocalPrefillFromFlag();
  if (!local_prefill.ok()) return baton::ReportFailure(local_prefill.status());
  baton::v1::WorkerHello hello;
  hello.set_role(baton::v1::ROLE_DECODE);
  hello.set_local_prefill(*local_prefill != baton::LocalPrefill::kRefused);
  hello.set_local_prefill_always(*local_prefill == baton::LocalPrefill::kAlways);
  return baton::RunWorkerProcess(
      hello,
      [local_prefill](const baton::EngineContext& context)
          -> absl::StatusOr<std::unique_ptr<baton::WorkerEngine>> {
        const baton::EngineOptions& options = context.parts->options;
        BATON_ASSIGN_OR_RETURN(std::unique_ptr<baton::SwapSpace> swap,
                               baton::MakeSwapSpace(*context.parts->arena, SwapBytesFromFlag()));
        return std::make_unique<baton::DecodeEngine>(
            baton::DecodeEngineOptions{.incarnation = context.incarnation,
                                       .chunk_tokens = options.chunk_tokens,
                                       .sequences_max = options.sequences_max,
                                       .local_prefill = *local_prefill},
            context.parts->executor.get(), context.parts->pool.get(), context.events,
            context.transfers, baton::Now, baton::SecureRandom, std::move(swap));
      });
}
