// baton_prefill_worker: computes prompts and hands their KV cache to decode workers.
#include "common/base/command_line.h"
#include "common/base/version.h"
#include "common/telemetry/log.h"
#include "common/worker/worker.h"
#include "prefill_worker/prefill_engine.h"

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_prefill_worker",
       .summary = "Computes prompts and hands their KV cache to decode workers.",
       .usage = "Usage: baton_prefill_worker --model DIR [--listen HOST:PORT] [flags]\n"
                "Routers connect to it (baton_router --prefill HOST:PORT).",
       .version = baton::Version()});
  if (const absl::Status status = baton::InitLogFromFlags("baton_prefill_worker"); !status.ok()) {
    return baton::ReportFailure(status);
  }
  baton::v1::WorkerHello hello;
  hello.set_role(baton::v1::ROLE_PREFILL);
  return baton::RunWorkerProcess(hello, [](const baton::EngineContext& context) {
    return std::make_unique<baton::PrefillEngine>(
        baton::PrefillEngineOptions{.chunk_tokens = context.parts->options.chunk_tokens,
                                    .jobs_max = context.parts->options.sequences_max},
        context.parts->executor.get(), context.parts->pool.get(), context.events, context.transfers,
        baton::Now);
  });
}
