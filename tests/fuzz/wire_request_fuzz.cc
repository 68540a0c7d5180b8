// The bytes of a client's call, up to what an engine is asked to run. Run from the checkout's root,
// where the demo model is.
//
// The reader takes exactly what protobuf takes, and names the field that is not UTF-8. What passes
// all checks is within every limit, and the engine takes it.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "common/base/check.h"
#include "common/engine/work_codec.h"
#include "common/request/model_profile.h"
#include "common/request/request_reader.h"
#include "common/tokenizer/utf8.h"
#include "proto/inference.pb.h"
#include "router/wire_request.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/wire_message.h"

namespace baton {
namespace {

const ModelProfile& Model() {
  static const ModelProfile model = ModelProfile::Load("deploy/demo_model/model").value();
  return model;
}

ModelConfig EngineModel() {
  ModelConfig config;
  config.vocab_size = Model().vocab_size;
  config.context_tokens = Model().context_tokens;
  return config;
}

// Equal for equal messages: the order of a map's entries is none otherwise.
std::string Canonical(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream output(&stream);
    output.SetSerializationDeterministic(true);
    BATON_CHECK(message.SerializeToCodedStream(&output));
  }
  return bytes;
}

template <typename Request>
std::optional<Request> Parse(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  Request read;
  const absl::Status status = ParseWireRequest(grpc::ByteBuffer(&slice, 1), &read);
  Request plain;
  const bool is_one = plain.ParseFromString(bytes);
  BATON_CHECK(status.ok() == is_one);
  if (!is_one) {
    BATON_CHECK(absl::IsInvalidArgument(status) && !status.message().empty());
    return std::nullopt;
  }
  grpc::Slice again;
  BATON_CHECK(ToWire(read).DumpToSingleSlice(&again).ok());
  Request reread;
  BATON_CHECK(reread.ParseFromArray(again.begin(), static_cast<int>(again.size())));
  BATON_CHECK(Canonical(reread) == Canonical(plain));
  return read;
}

void CheckSampling(const v1::SamplingOptions& options) {
  BATON_CHECK(options.has_seed());
  const auto within = [](float value, float low, float high) {
    BATON_CHECK(std::isfinite(value) && value >= low && value <= high);
  };
  within(options.temperature(), 0, INFINITY);
  within(options.top_p(), 0, 1);
  within(options.min_p(), 0, 1);
  within(options.presence_penalty(), -2, 2);
  within(options.frequency_penalty(), -2, 2);
  BATON_CHECK(std::isfinite(options.repetition_penalty()));
  BATON_CHECK(options.logprobs() <= RequestLimits::kLogprobsMax);
  BATON_CHECK(options.logit_bias_size() <= RequestLimits::kLogitBiasMax);
}

// As RouterCore::MakeWork.
v1::Work MakeWork(const CheckedRequest& request) {
  v1::Work work;
  work.set_request(1);
  work.mutable_tokens()->Add(request.tokens.begin(), request.tokens.end());
  work.set_prompt_tokens(request.prompt_tokens);
  work.set_total_tokens_max(request.total_tokens_max);
  *work.mutable_sampling() = request.sampling;
  *work.mutable_stopping() = request.stopping;
  work.set_priority(request.priority);
  return work;
}

// The text of an answer is UTF-8 and ends before the first stop string.
void CheckText(CheckedRequest& request) {
  std::string text;
  std::optional<std::string> stop;
  for (const TokenId token : request.tokens) {
    TextStream::Step step = request.text->Feed(token);
    BATON_CHECK(ValidUtf8Prefix(step.text) == step.text.size());
    text += step.text;
    stop = step.stop_string;
    if (stop.has_value()) return;
  }
  const TextStream::Step rest = request.text->Flush();
  BATON_CHECK(ValidUtf8Prefix(rest.text) == rest.text.size());
}

void CheckGenerate(const v1::GenerateRequest& request) {
  absl::StatusOr<CheckedRequest> checked = ReadRequest(request, Model(), /*drawn_seed=*/1);
  if (!checked.ok()) {
    BATON_CHECK(!checked.status().message().empty());
    return;
  }
  const ModelProfile& model = Model();
  BATON_CHECK(checked->prompt_tokens > 0 && checked->prompt_tokens <= checked->tokens.size());
  BATON_CHECK(checked->tokens.size() <= checked->total_tokens_max);
  BATON_CHECK(checked->total_tokens_max <= model.context_tokens);
  BATON_CHECK(std::abs(checked->priority) <= RequestLimits::kPriorityMax);
  BATON_CHECK(checked->stopping.min_tokens() <= checked->total_tokens_max);
  CheckSampling(checked->sampling);
  if (!checked->end_reached().has_value()) {
    BATON_CHECK_OK(
        SequenceFromWork(Incarnation{1}, MakeWork(*checked), EngineModel(), Instant{}).status());
  }
  CheckText(*checked);
}

void CheckTokenize(const v1::TokenizeRequest& request) {
  const auto ids = request.has_chat()
                       ? ChatTokens(request.chat(), Model())
                       : TextTokens("text", request.text(), request.add_special_tokens(), Model());
  if (!ids.ok()) return;
  for (const TokenId id : *ids) BATON_CHECK(Model().tokenizer->HasToken(id));
}

void CheckDetokenize(const v1::DetokenizeRequest& request) {
  const std::vector<TokenId> ids(request.ids().begin(), request.ids().end());
  const std::string text = Model().tokenizer->Decode(ids, request.skip_special_tokens());
  BATON_CHECK(ValidUtf8Prefix(text) == text.size());
}

void Run(FuzzInput input) {
  SilenceProtobuf();
  switch (input.Below(4)) {
    case 0:
    case 1:
      if (const auto request = Parse<v1::GenerateRequest>(input.Rest())) CheckGenerate(*request);
      break;
    case 2:
      if (const auto request = Parse<v1::TokenizeRequest>(input.Rest())) CheckTokenize(*request);
      break;
    case 3:
      if (const auto request = Parse<v1::DetokenizeRequest>(input.Rest())) {
        CheckDetokenize(*request);
      }
      break;
  }
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::Run(baton::FuzzInput(data, size));
  return 0;
}
