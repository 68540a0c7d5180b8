// baton: the command line client of a router.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/rpc/termination.h"
#include "common/telemetry/log.h"
#include "router/cli/commands.h"

namespace {

constexpr int kExitInterrupted = 130;  // As a shell reports SIGINT.

absl::StatusOr<baton::cli::Options> ReadCommandLine(const std::vector<std::string>& positional) {
  BATON_RETURN_IF_ERROR(baton::InitLogFromFlags("baton"));
  return baton::cli::OptionsFromFlags(positional);
}

int Run(const std::vector<std::string>& positional) {
  baton::TerminationSignal interrupt;  // Before any other thread.
  const absl::StatusOr<baton::cli::Options> options = ReadCommandLine(positional);
  if (!options.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(options.status().message()).c_str());
    return 1;
  }
  baton::cli::Client client(options->client);
  std::atomic<bool> done = false;
  // Ctrl-C cancels the call that is under way; between calls it ends the program.
  std::thread watcher([&interrupt, &client, &done] {
    interrupt.Wait();
    if (!done && !client.Cancel()) std::_Exit(kExitInterrupted);
  });
  const absl::Status status = baton::cli::RunCommand(*options, &client);
  const bool interrupted = interrupt.requested();
  done = true;
  interrupt.Request();
  watcher.join();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return interrupted ? kExitInterrupted : 1;
}

}  // namespace

int main(int argc, char** argv) {
  return Run(baton::ParseCommandLine(
      argc, argv,
      {.name = "baton",
       .summary = "Talks to a Baton router.",
       .usage =
           "Usage: baton generate   --prompt TEXT | --prompt_ids 1,2,3 | --prompt_file F [flags]\n"
           "       baton chat       [--system TEXT] [--prompt TEXT] [flags]\n"
           "       baton tokenize   --prompt TEXT | --prompt_file F\n"
           "       baton detokenize --prompt_ids 1,2,3\n"
           "       baton status\n"
           "       baton drain      HOST:PORT of a worker; returns when it has left\n"
           "Tokens stream to standard output as they come. Ctrl-C cancels.",
       .version = baton::Version(),
       .takes_arguments = true}));
}
