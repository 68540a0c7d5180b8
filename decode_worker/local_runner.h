// The decode engine in one process, without a network: one request at a time, prompt in, tokens
// out. What baton_run is made of, and the oracle that clusters are compared with. One thread.
#ifndef BATON_DECODE_WORKER_LOCAL_RUNNER_H_
#define BATON_DECODE_WORKER_LOCAL_RUNNER_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/decode_engine.h"
#include "proto/worker.pb.h"

namespace baton {

struct LocalResult {
  absl::Status status;  // The rest holds what came before a failure.
  std::vector<v1::Token> tokens;
  v1::Admitted admitted;
  v1::SequenceFinished finished;
  bool cancelled = false;  // By the callback; `finished` is not set then.
};

class LocalRunner {
 public:
  // Sees each token as it comes; false ends the request with it.
  using OnToken = std::function<bool(const v1::Token&)>;

  // `parts` outlives the runner.
  explicit LocalRunner(EngineParts* parts);
  ~LocalRunner();

  LocalResult Run(const v1::Work& work, const OnToken& on_token = nullptr);

 private:
  class NoTransfers;
  class Inbox;

  const std::unique_ptr<NoTransfers> transfers_;
  const std::unique_ptr<Inbox> inbox_;
  DecodeEngine engine_;
};

}  // namespace baton

#endif  // BATON_DECODE_WORKER_LOCAL_RUNNER_H_
