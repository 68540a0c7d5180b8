#include "router/worker_directory.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

bool IsIpAddress(const std::string& host) {
  unsigned char bytes[sizeof(in6_addr)];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> WorkerDirectory::ResolveBySystem(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot resolve ", host, ": ", gai_strerror(error)));
  }
  std::set<std::string> v4;
  std::set<std::string> v6;
  for (const addrinfo* item = found; item != nullptr; item = item->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(item->ai_addr, item->ai_addrlen, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      (item->ai_family == AF_INET ? v4 : v6).insert(text);
    }
  }
  freeaddrinfo(found);
  const std::set<std::string>& chosen = v4.empty() ? v6 : v4;
  return std::vector<std::string>(chosen.begin(), chosen.end());
}

absl::StatusOr<std::unique_ptr<WorkerDirectory>> WorkerDirectory::Start(
    const WorkerDirectoryOptions& options, Resolver resolver, OnWorkers on_workers) {
  std::map<v1::Role, std::vector<Entry>> entries;
  const std::pair<v1::Role, const std::vector<std::string>*> lists[] = {
      {v1::ROLE_PREFILL, &options.prefill}, {v1::ROLE_DECODE, &options.decode}};
  for (const auto& [role, list] : lists) {
    for (const std::string& text : *list) {
      const std::string address(absl::StripPrefix(text, "dns:///"));
      BATON_ASSIGN_OR_RETURN(HostPort where, ParseHostPort(address));
      const bool is_name = !IsIpAddress(where.host);
      Entry& entry = entries[role].emplace_back();
      entry.where = std::move(where);
      entry.is_name = is_name;
    }
  }
  return std::unique_ptr<WorkerDirectory>(new WorkerDirectory(
      std::move(entries), options.resolve_interval, std::move(resolver), std::move(on_workers)));
}

WorkerDirectory::WorkerDirectory(std::map<v1::Role, std::vector<Entry>> entries,
                                 Duration resolve_interval, Resolver resolver, OnWorkers on_workers)
    : resolve_interval_(resolve_interval),
      resolver_(std::move(resolver)),
      on_workers_(std::move(on_workers)),
      entries_(std::move(entries)),
      thread_([this] { Run(); }) {}

WorkerDirectory::~WorkerDirectory() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void WorkerDirectory::Run() {
  while (ResolveAll()) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(resolve_interval_));
    if (stopping_) return;
  }
}

bool WorkerDirectory::ResolveAll() {
  bool any_name = false;
  for (auto& [role, entries] : entries_) {
    std::vector<std::string> addresses;
    for (Entry& entry : entries) {
      Resolve(&entry);
      any_name = any_name || entry.is_name;
      addresses.insert(addresses.end(), entry.addresses.begin(), entry.addresses.end());
    }
    std::sort(addresses.begin(), addresses.end());
    addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
    if (addresses == told_[role]) continue;
    told_[role] = addresses;
    on_workers_(role, std::move(addresses));
  }
  return any_name;
}

void WorkerDirectory::Resolve(Entry* entry) {
  if (!entry->is_name) {
    entry->addresses = {FormatHostPort(entry->where)};
    return;
  }
  const absl::StatusOr<std::vector<std::string>> hosts = resolver_(entry->where.host);
  if (!hosts.ok()) {
    if (!entry->failed) LogWarning("worker name not resolved", {{"error", hosts.status()}});
    entry->failed = true;
    return;
  }
  entry->failed = false;
  entry->addresses.clear();
  for (const std::string& host : *hosts) {
    entry->addresses.push_back(FormatHostPort({.host = host, .port = entry->where.port}));
  }
}

}  // namespace baton
