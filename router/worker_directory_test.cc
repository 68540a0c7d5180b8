#include "router/worker_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Records what the directory says.
class Heard {
 public:
  WorkerDirectory::OnWorkers Callback() {
    return [this](v1::Role role, std::vector<std::string> addresses) {
      absl::MutexLock lock(&mutex_);
      last_[role] = std::move(addresses);
      ++calls_;
    };
  }
  // Waits until the role's addresses are these.
  bool Await(v1::Role role, const std::vector<std::string>& addresses) {
    absl::MutexLock lock(&mutex_);
    const auto is_so = [&] { return last_[role] == addresses; };
    return mutex_.AwaitWithTimeout(absl::Condition(&is_so), absl::Seconds(20));
  }
  int calls() {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }

 private:
  absl::Mutex mutex_;
  std::map<v1::Role, std::vector<std::string>> last_;
  int calls_ = 0;
};

absl::StatusOr<std::vector<std::string>> NoNames(const std::string& host) {
  return absl::InternalError("resolved " + host);
}

TEST(WorkerDirectoryTest, AddressesAreTakenAsTheyAre) {
  Heard heard;
  const auto directory = WorkerDirectory::Start(
      {.prefill = {"10.0.0.1:7"}, .decode = {"[::1]:8", "10.0.0.2:9"}}, NoNames, heard.Callback());
  ASSERT_TRUE(directory.ok()) << directory.status();

  EXPECT_TRUE(heard.Await(v1::ROLE_PREFILL, {"10.0.0.1:7"}));
  EXPECT_TRUE(heard.Await(v1::ROLE_DECODE, {"10.0.0.2:9", "[::1]:8"}));
}

TEST(WorkerDirectoryTest, NameIsResolvedAgainAndAgain) {
  Heard heard;
  absl::Mutex mutex;
  absl::StatusOr<std::vector<std::string>> answer = std::vector<std::string>{"10.0.0.1"};
  const auto resolver = [&](const std::string& host) {
    EXPECT_EQ(host, "decode.svc");
    absl::MutexLock lock(&mutex);
    return answer;
  };
  const auto set = [&](absl::StatusOr<std::vector<std::string>> next) {
    absl::MutexLock lock(&mutex);
    answer = std::move(next);
  };
  const auto directory = WorkerDirectory::Start({.prefill = {},
                                                 .decode = {"dns:///decode.svc:7"},
                                                 .resolve_interval = std::chrono::milliseconds(1)},
                                                resolver, heard.Callback());
  ASSERT_TRUE(directory.ok());

  EXPECT_TRUE(heard.Await(v1::ROLE_DECODE, {"10.0.0.1:7"}));
  set(std::vector<std::string>{"10.0.0.1", "10.0.0.2"});
  EXPECT_TRUE(heard.Await(v1::ROLE_DECODE, {"10.0.0.1:7", "10.0.0.2:7"}));
  // A name service that fails makes nobody disappear.
  set(absl::UnavailableError("no answer"));
  set(std::vector<std::string>{"10.0.0.2"});
  EXPECT_TRUE(heard.Await(v1::ROLE_DECODE, {"10.0.0.2:7"}));
  EXPECT_EQ(heard.calls(), 3);
}

TEST(WorkerDirectoryTest, MalformedAddressIsNamed) {
  Heard heard;
  const absl::Status status =
      WorkerDirectory::Start({.prefill = {}, .decode = {"nowhere"}}, NoNames, heard.Callback())
          .status();

  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("nowhere"));
}

TEST(WorkerDirectoryTest, SystemResolvesLocalhostToOneFamily) {
  const auto hosts = WorkerDirectory::ResolveBySystem("localhost");
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  EXPECT_THAT(*hosts, ElementsAre("127.0.0.1"));
}

}  // namespace
}  // namespace baton
