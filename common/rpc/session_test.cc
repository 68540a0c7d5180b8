// The two sides of a session against each other, and each against a misbehaving peer, over real
// gRPC.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/rpc/session_test_peers.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(SessionTest, CommandsAndEventsArriveInOrderBehindTheHellos) {
  RecordingHandler handler;
  std::optional<TestWorker> worker;
  handler.on_command = [&worker](SessionId session, const v1::Command& command) {
    worker->sessions().Send(session, LoadEvent(static_cast<uint32_t>(command.cancel().request())));
  };
  worker.emplace(&handler);
  RecordingClientHandler client_handler;
  SessionClient client(worker->address(), &client_handler, FastClientOptions());
  ASSERT_TRUE(client_handler.journal.Await("up"));

  for (uint64_t i = 1; i <= 3; ++i) {
    EXPECT_TRUE(client.Send(SessionNumber{1}, CancelCommand(i)));
  }

  ASSERT_TRUE(client_handler.journal.Await("event 1 load 3"));
  EXPECT_THAT(handler.journal.All(), ElementsAre("opened 1 number 1", "command 1 cancel 1",
                                                 "command 1 cancel 2", "command 1 cancel 3"));
  EXPECT_THAT(client_handler.journal.All(), ElementsAre("up 1 worker 4711", "event 1 load 1",
                                                        "event 1 load 2", "event 1 load 3"));
  client.Stop();
  ASSERT_TRUE(handler.journal.Await("closed 1"));
}

TEST(SessionTest, EventsSentWhileOpeningFollowTheHello) {
  RecordingHandler handler;
  std::optional<TestWorker> worker;
  handler.on_opened = [&worker](SessionId session) {
    worker->sessions().Send(session, LoadEvent(5));
  };
  worker.emplace(&handler);
  RawRouter router(worker->address());

  router.Hello(1);

  EXPECT_TRUE(router.Read()->has_hello());
  EXPECT_EQ(router.Read()->load().load().blocks_free(), 5u);
}

TEST(SessionTest, IdleSessionStaysUpByHeartbeats) {
  // Goal: neither side breaks an idle session. Method: a silence limit of 12 heartbeats is passed
  // several times over; raw heartbeats are seen by a raw router.
  RecordingHandler handler;
  SessionServerOptions options = FastServerOptions();
  options.silence_max = milliseconds(480);
  TestWorker worker(&handler, options);
  RecordingClientHandler client_handler;
  SessionClientOptions client_options = FastClientOptions();
  client_options.silence_max = milliseconds(480);
  SessionClient client(worker.address(), &client_handler, client_options);
  ASSERT_TRUE(client_handler.journal.Await("up 1"));
  RawRouter watcher(worker.address());
  watcher.Hello(1, /*incarnation=*/kRouter + 1);
  ASSERT_TRUE(watcher.Read()->has_hello());

  v1::Command ping;
  ping.mutable_ping();
  for (int i = 0; i < 40; ++i) {
    const std::optional<v1::Event> heartbeat = watcher.Read();
    ASSERT_TRUE(heartbeat.has_value());
    EXPECT_EQ(heartbeat->event_case(), v1::Event::EVENT_NOT_SET);
    watcher.Write(ping);
  }

  EXPECT_EQ(client_handler.journal.Count("down"), 0u);
  EXPECT_EQ(handler.journal.Count("closed"), 0u);
  EXPECT_EQ(worker.sessions().session_count(), 2u);
}

TEST(SessionTest, SilentRouterIsBrokenAndClosedOnce) {
  RecordingHandler handler;
  MetricsRegistry metrics;
  SessionServerOptions options = FastServerOptions();
  options.silence_max = milliseconds(120);
  options.metrics = &metrics;
  TestWorker worker(&handler, options);
  RawRouter router(worker.address());
  router.Hello(1);

  const absl::Status status = router.ReadToEnd();

  EXPECT_THAT(status.ToString(), AllOf(HasSubstr("UNAVAILABLE"), HasSubstr("silent for 120 ms")));
  ASSERT_TRUE(handler.journal.Await("closed"));
  worker.sessions().Shutdown(absl::UnavailableError("end"));
  EXPECT_THAT(handler.journal.All(), ElementsAre("opened 1 number 1", "closed 1"));
  EXPECT_EQ(metrics.AddCounter("baton_sessions_ended_total", "", {{"reason", "silence"}}).Value(),
            1);
  EXPECT_EQ(metrics.AddGauge("baton_sessions", "").Value(), 0);
}

TEST(SessionTest, StreamWithoutHelloIsBrokenUnseenByTheHandler) {
  RecordingHandler handler;
  SessionServerOptions options = FastServerOptions();
  options.silence_max = milliseconds(120);
  TestWorker worker(&handler, options);
  RawRouter router(worker.address());

  EXPECT_EQ(router.ReadToEnd().code(), absl::StatusCode::kUnavailable);

  worker.sessions().Shutdown(absl::UnavailableError("end"));
  EXPECT_THAT(handler.journal.All(), ElementsAre());
}

TEST(SessionTest, ProtocolViolationsEndTheSessionWithAReason) {
  RecordingHandler handler;
  TestWorker worker(&handler);
  RawRouter no_hello(worker.address());
  no_hello.Write(CancelCommand(1));
  EXPECT_EQ(no_hello.ReadToEnd().code(), absl::StatusCode::kInvalidArgument);

  RawRouter no_incarnation(worker.address());
  no_incarnation.Hello(1, /*incarnation=*/0);
  EXPECT_EQ(no_incarnation.ReadToEnd().code(), absl::StatusCode::kInvalidArgument);

  RawRouter two_hellos(worker.address());
  two_hellos.Hello(1);
  two_hellos.Hello(2);
  EXPECT_EQ(two_hellos.ReadToEnd().code(), absl::StatusCode::kInvalidArgument);

  RawRouter from_the_future(worker.address());
  from_the_future.Hello(3);
  from_the_future.Write(v1::Command());
  EXPECT_EQ(from_the_future.ReadToEnd().code(), absl::StatusCode::kUnimplemented);
  ASSERT_TRUE(handler.journal.Await("closed", 2));
}

TEST(SessionTest, HigherSessionNumberRetiresTheLowerBeforeItOpens) {
  RecordingHandler handler;
  TestWorker worker(&handler);
  RawRouter first(worker.address());
  first.Hello(5);
  ASSERT_TRUE(first.Read()->has_hello());
  RawRouter second(worker.address());

  second.Hello(6);

  ASSERT_TRUE(second.Read()->has_hello());
  EXPECT_EQ(first.ReadToEnd().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(handler.journal.All(),
              ElementsAre("opened 1 number 5", "closed 1", "opened 2 number 6"));
  EXPECT_EQ(worker.sessions().session_count(), 1u);
}

TEST(SessionTest, LowerSessionNumberIsRefusedUnseenByTheHandler) {
  RecordingHandler handler;
  TestWorker worker(&handler);
  RawRouter first(worker.address());
  first.Hello(5);
  ASSERT_TRUE(first.Read()->has_hello());
  for (const uint64_t number : {4, 5}) {
    RawRouter late(worker.address());
    late.Hello(number);
    EXPECT_EQ(late.ReadToEnd().code(), absl::StatusCode::kAborted);
  }
  RawRouter other(worker.address());
  other.Hello(1, /*incarnation=*/kRouter + 1);

  EXPECT_TRUE(other.Read()->has_hello());

  EXPECT_THAT(handler.journal.All(), ElementsAre("opened 1 number 5", "opened 4 number 1"));
}

TEST(SessionTest, SecondAddressOfAWorkerWaitsUntilTheFirstSessionIsBroken) {
  // Goal: two links of one router that lead to the same worker do not retire each other in turn.
  // Method: one server under two names of loopback; the second link asks again and again.
  RecordingHandler handler;
  TestWorker worker(&handler);
  const std::string port = worker.address().substr(worker.address().rfind(':'));
  SessionCounter numbers;
  SessionClientOptions options = FastClientOptions();
  options.numbers = &numbers;
  RecordingClientHandler first_handler;
  SessionClient first("127.0.0.1" + port, &first_handler, options);
  ASSERT_TRUE(first_handler.journal.Await("up 1"));
  RecordingClientHandler second_handler;
  options.refused_backoff = milliseconds(1);
  SessionClient second("localhost" + port, &second_handler, options);

  ASSERT_TRUE(second_handler.journal.Await("down", 3));
  EXPECT_EQ(
      second_handler.journal.All()[0],
      "down 2 FAILED_PRECONDITION: this router already reaches this worker as 127.0.0.1" + port);
  EXPECT_EQ(second_handler.journal.Count("up"), 0u);
  EXPECT_EQ(first_handler.journal.Count("down"), 0u);

  first.Stop();

  EXPECT_TRUE(second_handler.journal.Await("up"));
  EXPECT_THAT(handler.journal.All(),
              ElementsAre("opened 1 number 1", "closed 1", HasSubstr("opened")));
}

TEST(SessionTest, ManyRivalSessionsOpenAndCloseInPairs) {
  // Goal: whatever order hellos of one router come in, at most one session is open at a time.
  // Method: sessions race from several threads; the journal must alternate.
  RecordingHandler handler;
  {
    TestWorker worker(&handler);
    std::vector<std::thread> rivals;
    for (uint64_t rival = 0; rival < 4; ++rival) {
      rivals.emplace_back([&worker, rival] {
        for (uint64_t i = 0; i < 25; ++i) {
          RawRouter router(worker.address());
          router.Hello(4 * i + rival);
          if (router.Read()) router.Write(CancelCommand(i));
        }
      });
    }
    for (std::thread& rival : rivals) rival.join();
  }

  std::string open;
  for (const std::string& entry : handler.journal.All()) {
    const std::vector<std::string> words = absl::StrSplit(entry, ' ');
    if (words[0] == "opened") {
      EXPECT_EQ(open, "") << entry;
      open = words[1];
    } else {
      EXPECT_EQ(open, words[1]) << entry;
      if (words[0] == "closed") open = "";
    }
  }
  EXPECT_EQ(open, "");
  EXPECT_GT(handler.journal.Count("opened"), 0u);
}

TEST(SessionTest, RefusalReachesTheRouterAndIsRetriedSlowly) {
  RecordingHandler handler;
  handler.refusal = absl::FailedPreconditionError("another model");
  TestWorker worker(&handler);
  RecordingClientHandler client_handler;
  SessionClientOptions options = FastClientOptions();
  options.refused_backoff = seconds(30);
  SessionClient client(worker.address(), &client_handler, options);

  ASSERT_TRUE(client_handler.journal.Await("down 1 FAILED_PRECONDITION: another model"));

  client.Stop();
  EXPECT_THAT(client_handler.journal.All(), testing::SizeIs(1));
  worker.sessions().Shutdown(absl::UnavailableError("end"));
  EXPECT_THAT(handler.journal.All(), ElementsAre("opened 1 number 1"));
}

TEST(SessionTest, CloseWritesWhatWasSentBefore) {
  RecordingHandler handler;
  TestWorker worker(&handler);
  RawRouter router(worker.address());
  router.Hello(1);
  ASSERT_TRUE(router.Read()->has_hello());
  for (uint32_t i = 1; i <= 100; ++i) worker.sessions().Send(SessionId{1}, LoadEvent(i));

  worker.sessions().Close(SessionId{1}, absl::UnavailableError("drained"));
  worker.sessions().Send(SessionId{1}, LoadEvent(101));

  uint32_t last = 0;
  while (const std::optional<v1::Event> event = router.Read()) {
    if (event->has_load()) {
      EXPECT_EQ(event->load().load().blocks_free(), ++last);
    }
  }
  EXPECT_EQ(last, 100u);
  EXPECT_EQ(router.Finish(), absl::UnavailableError("drained"));
  ASSERT_TRUE(handler.journal.Await("closed 1"));
}

TEST(SessionTest, OverflowBreaksTheSessionAndIsCounted) {
  RecordingHandler handler;
  MetricsRegistry metrics;
  SessionServerOptions options = FastServerOptions();
  options.outbox_events_max = 10;
  options.metrics = &metrics;
  TestWorker worker(&handler, options);
  RawRouter router(worker.address());  // Never reads.
  router.Hello(1);
  ASSERT_TRUE(handler.journal.Await("opened"));
  Counter& overflows =
      metrics.AddCounter("baton_sessions_ended_total", "", {{"reason", "overflow"}});

  // Flow control lets some 64 KiB pass before events pile up.
  v1::Event large;
  large.mutable_rejected()->set_message(std::string(16 << 10, 'x'));
  for (int i = 0; i < 100'000 && overflows.Value() == 0; ++i) {
    worker.sessions().Send(SessionId{1}, large);
  }

  EXPECT_EQ(overflows.Value(), 1);
  EXPECT_TRUE(handler.journal.Await("closed 1")) << "although the router does not read";
}

TEST(SessionTest, RouterThatNeverReadsIsCutAndFreesItsPlace) {
  RecordingHandler handler;
  SessionServerOptions options = FastServerOptions();
  options.sessions_max = 1;
  TestWorker worker(&handler, options);
  RawRouter stuck(worker.address());
  stuck.Hello(1);
  ASSERT_TRUE(handler.journal.Await("opened 1"));
  v1::Event large;
  large.mutable_rejected()->set_message(std::string(1 << 20, 'x'));
  for (int i = 0; i < 8; ++i) worker.sessions().Send(SessionId{1}, large);

  worker.sessions().Close(SessionId{1}, absl::UnavailableError("drained"));

  RecordingClientHandler client_handler;
  SessionClientOptions client_options = FastClientOptions();
  client_options.router_incarnation = Incarnation{kRouter + 1};
  SessionClient client(worker.address(), &client_handler, client_options);
  EXPECT_TRUE(client_handler.journal.Await("up"));
}

TEST(SessionTest, TokensOfASlowRouterAreMergedAndComplete) {
  RecordingHandler handler;
  SessionServerOptions options = FastServerOptions();
  options.outbox_events_max = 100;
  TestWorker worker(&handler, options);
  RawRouter router(worker.address());
  router.Hello(1);
  ASSERT_TRUE(router.Read()->has_hello());

  constexpr uint32_t kTokens = 20'000;
  for (uint32_t i = 0; i < kTokens; ++i) {
    worker.sessions().Send(SessionId{1}, TokensEvent(i, /*top_logprobs=*/20));
  }

  uint32_t next = 0;
  int messages = 0;
  while (next < kTokens) {
    const std::optional<v1::Event> event = router.Read();
    ASSERT_TRUE(event.has_value()) << router.Finish();
    if (!event->has_tokens()) continue;
    ++messages;
    for (const auto& sequence : event->tokens().sequences()) {
      for (const auto& token : sequence.tokens()) ASSERT_EQ(token.index(), next++);
    }
  }
  EXPECT_LT(messages, static_cast<int>(kTokens) / 10);
}

TEST(SessionTest, ClientComesBackWithAHigherNumberWhenTheWorkerDies) {
  RecordingHandler handler;
  std::optional<TestWorker> worker(std::in_place, &handler);
  const std::string address = worker->address();
  RecordingClientHandler client_handler;
  SessionClient client(address, &client_handler, FastClientOptions());
  ASSERT_TRUE(client_handler.journal.Await("up 1"));

  worker->Kill();
  ASSERT_TRUE(handler.journal.Await("closed 1"));
  ASSERT_TRUE(client_handler.journal.Await("down 1 UNAVAILABLE") ||
              client_handler.journal.Await("down 1 CANCELLED"));
  worker.reset();
  // Attempts against nobody fail; then the worker is back.
  ASSERT_TRUE(client_handler.journal.Await("down 3 UNAVAILABLE"));
  RecordingHandler second_handler;
  worker.emplace(&second_handler, FastServerOptions(), address);

  // Not only at the first one, which may have taken a second session before it was gone.
  ASSERT_TRUE(second_handler.journal.Await("opened 1"));
  ASSERT_TRUE(client_handler.journal.Await("up", 2));
  EXPECT_FALSE(client.Send(SessionNumber{1}, CancelCommand(1))) << "of a session long gone";
  client.Stop();
  worker.reset();
  EXPECT_THAT(second_handler.journal.All(), ElementsAre(HasSubstr("opened 1"), "closed 1"));
}

TEST(SessionTest, ClientMayStartBeforeTheWorkerAndStopWithoutIt) {
  RecordingClientHandler client_handler;
  SessionClient client("127.0.0.1:1", &client_handler, FastClientOptions());
  ASSERT_TRUE(client_handler.journal.Await("down 3 UNAVAILABLE"));

  client.Stop();

  const size_t count = client_handler.journal.All().size();
  EXPECT_FALSE(client.Send(SessionNumber{4}, CancelCommand(1)));
  EXPECT_EQ(client_handler.journal.All().size(), count);
  EXPECT_EQ(client_handler.journal.Count("up"), 0u);
}

// A worker that accepts the stream and then never says a word.
class SilentWorker final : public v1::Worker::CallbackService {
 public:
  class Reactor final : public grpc::ServerBidiReactor<v1::Command, v1::Event> {
   public:
    Reactor() { StartSendInitialMetadata(); }
    void OnCancel() override { Finish(grpc::Status::CANCELLED); }
    void OnDone() override { delete this; }
  };
  grpc::ServerBidiReactor<v1::Command, v1::Event>* Session(grpc::CallbackServerContext*) override {
    return new Reactor;
  }
};

TEST(SessionTest, ClientBreaksASilentWorker) {
  SilentWorker silent;
  auto server = RpcServer::Start({}, {&silent});
  ASSERT_TRUE(server.ok());
  RecordingClientHandler client_handler;
  SessionClientOptions options = FastClientOptions();
  options.silence_max = milliseconds(100);
  SessionClient client((*server)->address(), &client_handler, options);

  EXPECT_TRUE(client_handler.journal.Await("down 2 UNAVAILABLE: the worker was silent for 100 ms"));

  client.Stop();
}

const timeval kSocketPatience = {.tv_sec = absl::ToInt64Seconds(kPatience), .tv_usec = 0};

// A listening socket, whose connections the kernel takes as it does for a process that is stopped.
class StoppedWorker {
 public:
  StoppedWorker() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    BATON_CHECK(bind(fd_, reinterpret_cast<sockaddr*>(&address), size) == 0);
    BATON_CHECK(listen(fd_, 16) == 0);
    BATON_CHECK(
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &kSocketPatience, sizeof(kSocketPatience)) == 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~StoppedWorker() {
    for (const int connection : connections_) close(connection);
    close(fd_);
  }
  const std::string& address() const { return address_; }

  bool AwaitConnections(size_t count) {
    while (connections_.size() < count) {
      const int connection = accept(fd_, nullptr, nullptr);
      if (connection < 0) return false;
      connections_.push_back(connection);
    }
    return true;
  }
  // The process goes on: HTTP/2's first words, an empty SETTINGS frame, on every connection.
  void Wake() const {
    const std::string settings("\0\0\0\4\0\0\0\0\0", 9);
    for (const int connection : connections_) {
      send(connection, settings.data(), settings.size(), MSG_NOSIGNAL);
    }
  }
  // Whether the other side closes all of them.
  bool AwaitEnds() const {
    for (const int connection : connections_) {
      setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &kSocketPatience, sizeof(kSocketPatience));
      char buffer[4096];
      ssize_t count = 1;
      while (count > 0) count = recv(connection, buffer, sizeof(buffer), 0);
      if (count < 0 && errno == EAGAIN) return false;
    }
    return true;
  }

 private:
  const int fd_;
  std::string address_;
  std::vector<int> connections_;
};

// Goal: no connection to a worker that hung is left over once it goes on, whatever the client's
// channels were doing then.
TEST(SessionTest, ConnectionsToAStoppedWorkerAreClosedOnceItGoesOn) {
  StoppedWorker stopped;
  RecordingClientHandler client_handler;
  SessionClientOptions options = FastClientOptions();
  options.silence_max = milliseconds(1500);
  options.channel.reconnect_backoff_max = milliseconds(1000);  // A connection may take as long.
  options.backoff_min = options.backoff_max = milliseconds(100);
  SessionClient client(stopped.address(), &client_handler, options);
  // gRPC makes the second one by itself when the first one has taken too long; that fails the
  // attempt.
  ASSERT_TRUE(stopped.AwaitConnections(3));

  stopped.Wake();

  EXPECT_TRUE(stopped.AwaitEnds());
  client.Stop();
}

TEST(SessionTest, FullClientOutboxBreaksTheSession) {
  // Goal: commands that the worker does not take end the session instead of piling up. Method: the
  // worker's handler holds its first command until the client has given up.
  RecordingHandler handler;
  absl::Notification release;
  handler.on_command = [&release](SessionId, const v1::Command&) {
    release.WaitForNotificationWithTimeout(kPatience);
  };
  TestWorker worker(&handler);
  RecordingClientHandler client_handler;
  SessionClientOptions options = FastClientOptions();
  options.outbox_bytes_max = 1 << 20;
  SessionClient client(worker.address(), &client_handler, options);
  ASSERT_TRUE(client_handler.journal.Await("up 1"));
  v1::Command large = CancelCommand(1);
  large.mutable_admit()->mutable_work()->mutable_tokens()->Resize(100'000, 1'000'000);

  bool refused = false;
  for (int i = 0; i < 1000 && !refused; ++i) refused = !client.Send(SessionNumber{1}, large);

  EXPECT_TRUE(refused);
  EXPECT_TRUE(client_handler.journal.Await("down 1 RESOURCE_EXHAUSTED"));
  release.Notify();
  EXPECT_TRUE(client_handler.journal.Await("up", 2));
}

TEST(SessionTest, SessionWhoseBeginningFindsNoRoomIsBrokenAndANewOneFollows) {
  RecordingHandler handler;
  TestWorker worker(&handler);
  RecordingClientHandler client_handler;
  client_handler.no_room_for = SessionNumber{1};
  SessionClient client(worker.address(), &client_handler, FastClientOptions());

  EXPECT_TRUE(client_handler.journal.Await("down 1 RESOURCE_EXHAUSTED: no room"));
  EXPECT_TRUE(client_handler.journal.Await("up 2"));
}

TEST(SessionTest, ShutdownClosesAllSessionsAndRefusesNewOnes) {
  RecordingHandler handler;
  TestWorker worker(&handler);
  RawRouter first(worker.address());
  first.Hello(1);
  RawRouter second(worker.address());
  second.Hello(1, kRouter + 1);
  ASSERT_TRUE(first.Read()->has_hello());
  ASSERT_TRUE(second.Read()->has_hello());

  worker.sessions().Shutdown(absl::UnavailableError("draining"));

  EXPECT_EQ(handler.journal.Count("closed"), 2u);
  EXPECT_EQ(first.ReadToEnd(), absl::UnavailableError("draining"));
  RawRouter late(worker.address());
  late.Hello(9);
  EXPECT_EQ(late.ReadToEnd().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(handler.journal.Count("opened"), 2u);
}

TEST(SessionTest, WorkerThatHangsHasNoSessionsUntilItWorksAgain) {
  RecordingHandler handler;
  std::atomic<bool> hangs = false;
  SessionServerOptions options = FastServerOptions();
  options.check = [&hangs](Instant) {
    return hangs ? absl::UnavailableError("the engine hangs") : absl::OkStatus();
  };
  TestWorker worker(&handler, options);
  RecordingClientHandler client_handler;
  SessionClient client(worker.address(), &client_handler, FastClientOptions());
  ASSERT_TRUE(client_handler.journal.Await("up 1"));

  hangs = true;

  EXPECT_TRUE(client_handler.journal.Await("down 1 UNAVAILABLE: the engine hangs"));
  EXPECT_TRUE(client_handler.journal.Await("down 3 UNAVAILABLE: the engine hangs"));
  EXPECT_EQ(handler.journal.Count("opened"), 1u) << "refused unseen by the handler";

  hangs = false;

  EXPECT_TRUE(client_handler.journal.Await("up", 2));
}

TEST(SessionTest, WorkerThatHangsStillWritesWhatWasSentBefore) {
  RecordingHandler handler;
  std::atomic<bool> hangs = false;
  SessionServerOptions options = FastServerOptions();
  options.close_grace = std::chrono::seconds(30);
  options.check = [&hangs](Instant) {
    return hangs ? absl::UnavailableError("the engine hangs") : absl::OkStatus();
  };
  TestWorker worker(&handler, options);
  RawRouter router(worker.address());
  router.Hello(1);
  ASSERT_TRUE(router.Read()->has_hello());
  // More than a connection takes from a router that does not read.
  constexpr uint32_t kTokens = 20'000;
  for (uint32_t i = 0; i < kTokens; ++i) {
    worker.sessions().Send(SessionId{1}, TokensEvent(i, /*top_logprobs=*/20));
  }

  hangs = true;
  ASSERT_TRUE(handler.journal.Await("closed 1"));

  uint32_t tokens = 0;
  while (const std::optional<v1::Event> event = router.Read()) {
    for (const auto& sequence : event->tokens().sequences()) tokens += sequence.tokens_size();
  }
  EXPECT_EQ(tokens, kTokens);
  EXPECT_EQ(router.Finish(), absl::UnavailableError("the engine hangs"));
}

TEST(SessionTest, TooManySessionsAreRefused) {
  RecordingHandler handler;
  SessionServerOptions options = FastServerOptions();
  options.sessions_max = 1;
  TestWorker worker(&handler, options);
  RawRouter first(worker.address());
  first.Hello(1);
  ASSERT_TRUE(first.Read()->has_hello());
  RawRouter second(worker.address());

  EXPECT_EQ(second.ReadToEnd().code(), absl::StatusCode::kResourceExhausted);
}

TEST(SessionTest, CallbacksMayCallBack) {
  // Goal: no deadlock when a handler sends, closes or breaks from inside a callback.
  RecordingHandler handler;
  std::optional<TestWorker> worker;
  handler.on_command = [&worker](SessionId session, const v1::Command&) {
    worker->sessions().Send(session, LoadEvent(1));
    worker->sessions().Close(session, absl::AbortedError("enough"));
  };
  worker.emplace(&handler);
  RecordingClientHandler client_handler;
  std::optional<SessionClient> client;
  absl::Notification constructed;
  client_handler.on_up = [&](SessionNumber session) {
    constructed.WaitForNotificationWithTimeout(kPatience);
    EXPECT_TRUE(client->Send(session, CancelCommand(1)));
  };
  client.emplace(worker->address(), &client_handler, FastClientOptions());
  constructed.Notify();

  EXPECT_TRUE(client_handler.journal.Await("down 1 ABORTED: enough"));
  EXPECT_TRUE(handler.journal.Await("closed 2"));

  client->Stop();
  EXPECT_THAT(client_handler.journal.All()[1], "event 1 load 1");
}

}  // namespace
}  // namespace baton
