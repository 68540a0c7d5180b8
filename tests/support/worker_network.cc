#include "tests/support/worker_network.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

constexpr char kLoopback[] = "127.0.0.1:";

// What the program says; on failure it is the message.
absl::StatusOr<std::string> AskIp(const std::string& arguments) {
  FILE* const output = popen(absl::StrCat("ip ", arguments, " 2>&1").c_str(), "re");
  if (output == nullptr) return absl::InternalError("no shell can be started");
  std::string said;
  char buffer[256];
  while (std::fgets(buffer, sizeof(buffer), output) != nullptr) said += buffer;
  if (pclose(output) == 0) return said;
  return absl::InternalError(absl::StrCat("ip ", arguments, ": ", said));
}

absl::Status Ip(const std::string& arguments) { return AskIp(arguments).status(); }

std::string NextLetter() {
  static std::atomic<int> made{0};
  return std::string(1, static_cast<char>('a' + made++ % 26));
}

// Whether a network of this name has outlived its process, which was killed.
bool IsOrphan(const std::string& name) {
  // The network's own name, or that of a host in it.
  int pid = 0, end = 0;
  if (std::sscanf(name.c_str(), "b%d%*1[a-z]%n", &pid, &end) < 1 || end == 0 || pid <= 0) {
    return false;
  }
  const std::string host = name.substr(static_cast<size_t>(end));
  const bool ours = host.empty() || ((host[0] == 'p' || host[0] == 'd') &&
                                     host.find_first_not_of("0123456789", 1) == std::string::npos);
  return ours && kill(pid, 0) != 0 && errno == ESRCH;
}

// Removes what orphans `list` names, one a line as the first word.
void RemoveOrphans(const std::string& list, const std::string& remove) {
  for (const absl::string_view line : absl::StrSplit(AskIp(list).value_or(""), '\n')) {
    const std::string name(line.substr(0, line.find(' ')));
    if (IsOrphan(name)) Ip(absl::StrCat(remove, " ", name)).IgnoreError();
  }
}

}  // namespace

// Names and addresses are this process's, so that two runs do not meet; the addresses are those set
// apart for tests of networks (RFC 2544). Names are new ones each time: Linux takes its time to
// forget those of a namespace that is gone.
WorkerNetwork::WorkerNetwork(int prefill, int decode)
    : prefill_(prefill),
      decode_(decode),
      prefix_(absl::StrCat("b", getpid(), NextLetter())),
      network_(absl::StrCat("198.", 18 + (getpid() >> 8) % 2, ".", getpid() % 256, ".")) {}

absl::StatusOr<std::unique_ptr<WorkerNetwork>> WorkerNetwork::Create(int prefill, int decode) {
  auto network = std::unique_ptr<WorkerNetwork>(new WorkerNetwork(prefill, decode));
  BATON_RETURN_IF_ERROR(network->Make());
  return network;
}

absl::Status WorkerNetwork::Make() {
  RemoveOrphans("netns list", "netns del");
  RemoveOrphans("-br link show type bridge", "link del");
  // Both may be forbidden, or missing.
  for (const std::string& command :
       {absl::StrCat("netns add ", prefix_), absl::StrCat("netns del ", prefix_),
        absl::StrCat("link add ", prefix_, " type bridge")}) {
    const absl::Status allowed = Ip(command);
    if (!allowed.ok()) return absl::UnavailableError(allowed.message());
  }
  BATON_RETURN_IF_ERROR(Ip(absl::StrCat("addr add ", network_, "1/24 dev ", prefix_)));
  BATON_RETURN_IF_ERROR(Ip(absl::StrCat("link set ", prefix_, " up")));
  for (const std::string role : {"prefill", "decode"}) {
    for (int i = 0; i < (role == "decode" ? decode_ : prefill_); ++i) {
      BATON_RETURN_IF_ERROR(MakeHost(NameOf(role, i), AddressOf(role, i)));
    }
  }
  return absl::OkStatus();
}

absl::Status WorkerNetwork::MakeHost(const std::string& name, const std::string& address) {
  BATON_RETURN_IF_ERROR(Ip(absl::StrCat("netns add ", name)));
  BATON_RETURN_IF_ERROR(
      Ip(absl::StrCat("link add ", name, " type veth peer name eth0 netns ", name)));
  BATON_RETURN_IF_ERROR(Ip(absl::StrCat("link set ", name, " master ", prefix_, " up")));
  BATON_RETURN_IF_ERROR(Ip(absl::StrCat("-n ", name, " addr add ", address, "/24 dev eth0")));
  BATON_RETURN_IF_ERROR(Ip(absl::StrCat("-n ", name, " link set eth0 up")));
  return Ip(absl::StrCat("-n ", name, " link set lo up"));
}

// The links go with their namespaces.
WorkerNetwork::~WorkerNetwork() {
  for (int i = 0; i < prefill_; ++i) Ip("netns del " + NameOf("prefill", i)).IgnoreError();
  for (int i = 0; i < decode_; ++i) Ip("netns del " + NameOf("decode", i)).IgnoreError();
  Ip(absl::StrCat("link del ", prefix_)).IgnoreError();
}

void WorkerNetwork::Place(const std::string& role, int index,
                          std::vector<std::string>* command) const {
  const std::string address = AddressOf(role, index);
  for (std::string& argument : *command) {
    // At the first start; after that it already has an address here.
    if (argument.rfind(kLoopback, 0) == 0) {
      argument.replace(0, sizeof(kLoopback) - 1, address + ":");
    }
  }
  command->push_back("--transfer_host=" + address);
  command->insert(command->begin(), {"ip", "netns", "exec", NameOf(role, index)});
}

// What one sends to the other goes to a link address that nobody has.
absl::Status WorkerNetwork::Cut(int prefill, int decode) {
  return ChangeNeighbours("replace", " lladdr 02:00:00:00:00:01 nud permanent", prefill, decode);
}

absl::Status WorkerNetwork::Mend(int prefill, int decode) {
  return ChangeNeighbours("del", "", prefill, decode);
}

absl::Status WorkerNetwork::ChangeNeighbours(const char* verb, const char* link, int prefill,
                                             int decode) {
  const auto change = [verb, link](const std::string& name, const std::string& address) {
    return Ip(absl::StrCat("-n ", name, " neigh ", verb, " ", address, " dev eth0", link));
  };
  BATON_RETURN_IF_ERROR(change(NameOf("prefill", prefill), AddressOf("decode", decode)));
  return change(NameOf("decode", decode), AddressOf("prefill", prefill));
}

std::string WorkerNetwork::NameOf(const std::string& role, int index) const {
  return absl::StrCat(prefix_, role.substr(0, 1), index);
}

std::string WorkerNetwork::AddressOf(const std::string& role, int index) const {
  return absl::StrCat(network_, (role == "decode" ? 100 : 10) + index);
}

}  // namespace baton
