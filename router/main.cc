// baton_router: takes clients' requests and runs them on prefill and decode workers.
#include <cstdio>

#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/rpc/termination.h"
#include "common/telemetry/log.h"
#include "router/options.h"

static absl::Status Serve() {
  baton::TerminationSignal termination;  // Before any other thread.
  BATON_RETURN_IF_ERROR(baton::InitLogFromFlags("baton_router"));
  BATON_ASSIGN_OR_RETURN(baton::RouterOptions options, baton::RouterOptionsFromFlags());
  baton::MetricsRegistry metrics;
  BATON_ASSIGN_OR_RETURN(const auto metrics_server, baton::MetricsServer::StartFromFlags(metrics));
  BATON_ASSIGN_OR_RETURN(const auto router, baton::Router::Start(std::move(options), &metrics));
  // For scripts: what was bound, on stdout.
  std::printf("listening on %s\n", router->address().c_str());
  if (metrics_server != nullptr) std::printf("metrics on %s\n", metrics_server->address().c_str());
  std::fflush(stdout);
  while (!termination.WaitFor(baton::kReloadInterval)) {
    router->ReloadFiles();
    router->UpdateHealth();
  }
  router->DrainAndStop(baton::DrainGraceFromFlags());
  return absl::OkStatus();
}

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_router",
       .summary = "Takes requests and runs them on prefill and decode workers.",
       .usage =
           "Usage: baton_router --model DIR --decode HOST:PORT,… [--prefill HOST:PORT,…] [flags]\n"
           "Workers may start before or after it. Clients: baton --router HOST:PORT.",
       .version = baton::Version()});
  const absl::Status status = Serve();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
