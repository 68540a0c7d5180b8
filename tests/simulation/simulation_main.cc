// simulation: runs the whole cluster through faults, one seed after the other, until a rule is
// violated or time is up.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/base/clock.h"
#include "common/base/command_line.h"
#include "common/base/version.h"
#include "tests/simulation/simulated_cluster.h"

ABSL_FLAG(std::string, seed, "", "Replay this one, and tell its story if a rule is violated.");
ABSL_FLAG(std::string, seeds, "1..2000", "Search these, as FIRST..LAST.");
ABSL_FLAG(double, minutes, 0, "Stop the search after this time; 0: at the last seed.");
ABSL_FLAG(bool, story, false, "With --seed: tell the story in any case.");

namespace baton {
namespace {

constexpr size_t kStoryLines = 200;

uint64_t current_seed = 0;
const Record* current_record = nullptr;

void PrintStory(const Record& record) {
  for (const std::string& line : record.lines()) std::printf("%s\n", line.c_str());
}

// A check inside the program failed: which seed it was must not be lost.
void OnAbort(int /*signal*/) {
  if (current_record != nullptr) PrintStory(*current_record);
  std::printf("seed %lu aborted; replay it with --seed %lu\n", current_seed, current_seed);
  std::fflush(stdout);
  std::_Exit(1);
}

// Whether no rule was violated.
bool RunSeed(uint64_t seed, size_t story_lines, Happened& happened) {
  Record record(story_lines);
  current_seed = seed;
  current_record = &record;
  {
    SimulatedCluster cluster(seed, record);
    happened.Add(cluster.Run());
  }
  current_record = nullptr;
  const bool good = !record.violation().has_value();
  if (!good || absl::GetFlag(FLAGS_story)) PrintStory(record);
  if (!good) std::printf("seed %lu: %s\n", seed, record.violation()->c_str());
  return good;
}

int Search(uint64_t first, uint64_t last) {
  const Instant start = Now();
  const auto minutes = std::chrono::duration<double, std::ratio<60>>(absl::GetFlag(FLAGS_minutes));
  Happened happened;
  uint64_t count = 0;
  for (uint64_t seed = first; seed <= last; ++seed) {
    if (minutes.count() > 0 && Now() - start > minutes) break;
    if (!RunSeed(seed, 0, happened)) {
      // Once more, for its story.
      Happened again;
      RunSeed(seed, kStoryLines, again);
      std::printf("replay it with --seed %lu; %lu seeds before it violated nothing\n", seed, count);
      return 1;
    }
    ++count;
    if (count % 5000 == 0) {
      std::fprintf(stderr, "%lu seeds\n", count);
    }
  }
  const double seconds = ToMilliseconds(Now() - start) / 1000;
  std::printf("%lu seeds without a violation in %.1f s, %.0f a second\n%s\n", count, seconds,
              static_cast<double>(count) / seconds, happened.ToString().c_str());
  return 0;
}

int RunAll() {
  std::signal(SIGABRT, OnAbort);
  std::signal(SIGSEGV, OnAbort);
  uint64_t first = 0, last = 0;
  if (const std::string text = absl::GetFlag(FLAGS_seed); !text.empty()) {
    Happened happened;
    if (!absl::SimpleAtoi(text, &first)) {
      std::fprintf(stderr, "error: --seed: '%s' is no number\n", text.c_str());
      return 2;
    }
    return RunSeed(first, kStoryLines, happened) ? 0 : 1;
  }
  const std::string text = absl::GetFlag(FLAGS_seeds);
  const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(text, "..");
  if (!absl::SimpleAtoi(ends.first, &first) || !absl::SimpleAtoi(ends.second, &last)) {
    std::fprintf(stderr, "error: --seeds: '%s' is not FIRST..LAST\n", text.c_str());
    return 2;
  }
  return Search(first, last);
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "simulation",
       .summary = "Runs a simulated cluster through faults and checks what must hold.",
       .usage = "Usage: simulation --seeds 1..100000 [--minutes 10]\n"
                "       simulation --seed 4711",
       .version = baton::Version()});
  return baton::RunAll();
}
