#include "tests/support/metrics_page.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

constexpr timeval kPatience = {.tv_sec = 5, .tv_usec = 0};

absl::StatusOr<std::string> Get(const std::string& address) {
  BATON_ASSIGN_OR_RETURN(const HostPort where, ParseHostPort(address));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(where.port);
  inet_pton(AF_INET, where.host.c_str(), &peer.sin_addr);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof(kPatience));
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) > 0) {
    char buffer[4096];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
  }
  close(fd);
  if (!answer.empty()) return answer;
  return absl::UnavailableError(absl::StrCat("no metrics from ", address));
}

}  // namespace

absl::StatusOr<MetricsPage> ReadMetrics(const std::string& address) {
  BATON_ASSIGN_OR_RETURN(const std::string text, Get(address));
  MetricsPage page;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    double value = 0;
    if (line.rfind("baton_", 0) != 0 || space == std::string::npos) continue;
    if (absl::SimpleAtod(line.substr(space + 1), &value)) page[line.substr(0, space)] = value;
  }
  return page;
}

}  // namespace baton
