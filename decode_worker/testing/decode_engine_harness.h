// What the tests of the decode engine share: an engine over a fake model whose router and prefill
// workers the test plays.
#ifndef BATON_DECODE_WORKER_TESTING_DECODE_ENGINE_HARNESS_H_
#define BATON_DECODE_WORKER_TESTING_DECODE_ENGINE_HARNESS_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "common/engine/testing/engine_fixture.h"
#include "decode_worker/decode_engine.h"

namespace baton {

inline constexpr Incarnation kRouter{7};

// What a router has heard of one request.
struct Heard {
  std::vector<TokenId> tokens;
  std::vector<v1::Event> others;
  bool finished = false;
};

class Harness {
 public:
  explicit Harness(uint32_t blocks = 64, uint32_t sequences_max = 16, uint32_t model_window = 0,
                   uint32_t swap_blocks = 0)
      : window(model_window),
        fixture(blocks, model_window),
        engine(
            {.incarnation = Incarnation{1}, .chunk_tokens = 8, .sequences_max = sequences_max},
            &fixture.executor, &fixture.pool, &fixture.events, &fixture.transfers,
            [this] { return clock(); }, [this] { return ++nonce; },
            swap_blocks == 0
                ? nullptr
                : SwapSpace::Create(*fixture.arena,
                                    swap_blocks * fixture.arena->layout().block_bytes())
                      .value()) {}

  void Admit(const v1::Work& work, bool local) {
    v1::Command command;
    *command.mutable_admit()->mutable_work() = work;
    command.mutable_admit()->set_local_prefill(local);
    engine.OnCommand(kRouter, command, fixture.now);
    Listen();
  }
  void Cancel(uint64_t request) {
    v1::Command command;
    command.mutable_cancel()->set_request(request);
    engine.OnCommand(kRouter, command, fixture.now);
    Listen();
  }
  void Reopen(uint64_t request, bool local) {
    v1::Command command;
    command.mutable_reopen()->set_request(request);
    command.mutable_reopen()->set_local_prefill(local);
    engine.OnCommand(kRouter, command, fixture.now);
    Listen();
  }

  // Plays P: writes the KV of the prompt into the granted blocks and commits the first token.
  void Fill(const LeaseGrant& grant, const std::vector<TokenId>& tokens, uint32_t first_index = 0) {
    const std::span<const TokenId> all(tokens);
    const BatchRow row = {.tokens = all.subspan(grant.held_tokens),
                          .start = grant.held_tokens,
                          .blocks = grant.blocks,
                          .logit_count = 0};
    FakeModel prefill_model(97, 256, window);
    ASSERT_TRUE(prefill_model.Forward(std::span(&row, 1), *fixture.arena, {}, nullptr).ok());
    engine.OnTransferEvent(
        LeaseFilled{.lease = grant.lease,
                    .epoch = grant.epoch,
                    .first_token = {.token = FakeContinuation(tokens, 1, 97, window)[0],
                                    .index = first_index,
                                    .logprobs = ""},
                    .bytes = 0},
        fixture.now);
    Listen();
  }

  void QuiesceAll() {
    for (const auto& [lease, epoch] : fixture.transfers.retired) {
      quiesced.insert({lease, epoch});
      engine.OnTransferEvent(LeaseQuiesced{lease, epoch}, fixture.now);
    }
    fixture.transfers.retired.clear();
  }

  void RunAll() {
    for (int step = 0; engine.HasWork(); ++step) {
      ASSERT_LT(step, 100000);
      // The last one may only have forgotten a step that was started.
      ASSERT_TRUE(engine.Step(fixture.now) || !engine.HasWork());
      fixture.pool.CheckInvariants();
      Listen();
    }
  }

  // Sorts what was sent by request; checks that indices are consecutive.
  void Listen() {
    for (v1::Event& event : fixture.events.Take()) {
      if (event.has_tokens()) {
        for (const auto& sequence : event.tokens().sequences()) {
          Heard& heard = requests[sequence.request()];
          EXPECT_FALSE(heard.finished);
          for (const v1::Token& token : sequence.tokens()) {
            EXPECT_EQ(token.index(), heard.tokens.size());
            heard.tokens.push_back(token.id());
          }
        }
      } else if (event.has_finished()) {
        Heard& heard = requests[event.finished().request()];
        EXPECT_FALSE(heard.finished);
        heard.finished = true;
        heard.others.push_back(event);
      } else {
        if (event.admitted().has_ticket()) {
          lease_of[event.admitted().request()] = event.admitted().ticket().lease();
        }
        last = event;
      }
    }
  }

  std::set<std::pair<LeaseId, Epoch>> quiesced;
  uint64_t nonce = 0;
  const uint32_t window;
  EngineFixture fixture;
  std::function<Instant()> clock = [] { return Instant{}; };
  DecodeEngine engine;
  std::map<uint64_t, Heard> requests;
  std::map<uint64_t, uint64_t> lease_of;  // By request, the lease of its last ticket.
  v1::Event last;                         // The last event that was neither Tokens nor Finished.
};

}  // namespace baton

#endif  // BATON_DECODE_WORKER_TESTING_DECODE_ENGINE_HARNESS_H_
