#include "router/router_service.h"

#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/request/request_reader.h"
#include "common/rpc/status_codec.h"
#include "router/generate_stream.h"
#include "router/retry_hint.h"
#include "router/wire_request.h"

namespace baton {
namespace {

// The call's one value of `name`; nullopt for none or several.
std::optional<std::string> OnlyValue(const grpc::CallbackServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto [begin, end] = metadata.equal_range(name);
  if (begin == end || std::next(begin) != end) return std::nullopt;
  return std::string(begin->second.data(), begin->second.size());
}

}  // namespace

absl::StatusOr<std::string> RouterService::Authorize(const grpc::CallbackServerContext& context,
                                                     ApiKeys::Need need) const {
  if (options_.keys == nullptr) return "";
  absl::StatusOr<std::string> name =
      options_.keys->Authorize(OnlyValue(context, kAuthorizationKey), need);
  options_.metrics->CountKey(name);
  return name;
}

grpc::ServerUnaryReactor* RouterService::Refusal(grpc::CallbackServerContext* context,
                                                 ApiKeys::Need need) const {
  const absl::StatusOr<std::string> key = Authorize(*context, need);
  if (key.ok()) return nullptr;
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(key.status()));
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RouterService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const absl::StatusOr<std::string> key = Authorize(*context, ApiKeys::Need::kAnyKey);
  // Deletes itself when the call is over.
  auto* stream = new GenerateStream(context, options_.loop, options_.metrics, key.value_or(""));
  if (!key.ok()) {
    stream->Refuse(key.status(), options_.random());
    return stream;
  }
  const absl::Status room =
      texts_.Run(request->Length(), [this, stream, request] {  // Both live until the call ends.
        stream->Begin(*request, *options_.model, options_.random);
      });
  if (!room.ok()) stream->Refuse(room, options_.random());
  return stream;
}

grpc::ServerUnaryReactor* RouterService::Tokenize(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  if (grpc::ServerUnaryReactor* refusal = Refusal(context)) return refusal;
  return Answer(
      request->Length(), [this, request, response] { return DoTokenize(*request, response); },
      context);
}

grpc::ServerUnaryReactor* RouterService::Answer(uint64_t bytes,
                                                std::function<absl::Status()> answer,
                                                grpc::CallbackServerContext* context) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status room = texts_.Run(bytes, [reactor, context, answer = std::move(answer)] {
    // Also when its deadline has passed, or the server is shut down.
    const bool gone = context->IsCancelled();
    reactor->Finish(ToGrpcStatus(gone ? absl::CancelledError("nobody waits for it") : answer()));
  });
  if (room.ok()) return reactor;
  AddRetryHint(room, context);
  reactor->Finish(ToGrpcStatus(room));
  return reactor;
}

absl::Status RouterService::DoTokenize(const grpc::ByteBuffer& bytes,
                                       grpc::ByteBuffer* response) const {
  v1::TokenizeRequest request;
  BATON_RETURN_IF_ERROR(ParseWireRequest(bytes, &request));
  std::vector<TokenId> ids;
  if (request.has_chat()) {
    BATON_ASSIGN_OR_RETURN(ids, ChatTokens(request.chat(), *options_.model));
  } else if (request.has_text()) {
    const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
    BATON_ASSIGN_OR_RETURN(ids, TextTokens("text", request.text(), add_special, *options_.model));
  } else {
    return absl::InvalidArgumentError("text: one of text and chat must be given");
  }
  v1::TokenizeResponse answer;
  answer.mutable_ids()->Add(ids.begin(), ids.end());
  *response = ToWire(answer);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* RouterService::Detokenize(grpc::CallbackServerContext* context,
                                                    const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeResponse* response) {
  if (grpc::ServerUnaryReactor* refusal = Refusal(context)) return refusal;
  if (static_cast<uint32_t>(request->ids_size()) > options_.model->context_tokens) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(absl::InvalidArgumentError(
        absl::StrCat("ids: ", request->ids_size(), " tokens, but the context has ",
                     options_.model->context_tokens))));
    return reactor;
  }
  return Answer(
      request->ByteSizeLong(),
      [this, request, response] { return DoDetokenize(*request, response); }, context);
}

absl::Status RouterService::DoDetokenize(const v1::DetokenizeRequest& request,
                                         v1::DetokenizeResponse* response) const {
  for (int i = 0; i < request.ids_size(); ++i) {
    if (request.ids(i) < 0 || static_cast<uint32_t>(request.ids(i)) >= options_.model->vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("ids[", i, "]: token ", request.ids(i),
                                                     " is unknown; the vocabulary has ",
                                                     options_.model->vocab_size, " tokens"));
    }
  }
  const std::vector<TokenId> ids(request.ids().begin(), request.ids().end());
  const bool skip_special = !request.has_skip_special_tokens() || request.skip_special_tokens();
  response->set_text(options_.model->tokenizer->Decode(ids, skip_special));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* RouterService::GetModel(grpc::CallbackServerContext* context,
                                                  const v1::GetModelRequest*,
                                                  v1::GetModelResponse* response) {
  if (grpc::ServerUnaryReactor* refusal = Refusal(context)) return refusal;
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const ModelProfile& model = *options_.model;
  if (model.chat.ok()) response->set_chat_format(model.chat->name());
  v1::ModelInfo* info = response->mutable_model();
  const absl::Status asked = options_.loop->Query([reactor, info, &model](const RouterCore& core) {
    // The workers know what the router does not read: fingerprints, numerics, size.
    for (const auto& [id, worker] : core.workers().all()) {
      if (worker.serving()) *info = worker.hello.model();
    }
    info->set_name(model.name);
    info->set_architecture(model.architecture);
    info->set_vocab_size(model.vocab_size);
    info->set_context_tokens(model.context_tokens);
    info->mutable_eos_token_ids()->Assign(model.eos_token_ids.begin(), model.eos_token_ids.end());
    reactor->Finish(grpc::Status::OK);
  });
  if (!asked.ok()) {
    AddRetryHint(asked, context);
    reactor->Finish(ToGrpcStatus(asked));
  }
  return reactor;
}

grpc::ServerUnaryReactor* RouterService::GetCluster(grpc::CallbackServerContext* context,
                                                    const v1::GetClusterRequest*,
                                                    v1::GetClusterResponse* response) {
  if (grpc::ServerUnaryReactor* refusal = Refusal(context)) return refusal;
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status asked =
      options_.loop->Query([reactor, response, incarnation = options_.incarnation,
                            version = options_.version](const RouterCore& core) {
        *response = core.Cluster();
        response->set_router_incarnation(Raw(incarnation));
        response->set_version(version);
        reactor->Finish(grpc::Status::OK);
      });
  if (!asked.ok()) {
    AddRetryHint(asked, context);
    reactor->Finish(ToGrpcStatus(asked));
  }
  return reactor;
}

grpc::ServerUnaryReactor* RouterService::DrainWorker(grpc::CallbackServerContext* context,
                                                     const v1::DrainWorkerRequest* request,
                                                     v1::DrainWorkerResponse* response) {
  if (grpc::ServerUnaryReactor* refusal = Refusal(context, ApiKeys::Need::kAdminKey))
    return refusal;
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status asked = options_.loop->Query([reactor, request, response](RouterCore& core) {
    absl::StatusOr<v1::DrainWorkerResponse> told = core.DrainWorker(request->address(), Now());
    if (told.ok()) *response = *std::move(told);
    reactor->Finish(ToGrpcStatus(told.status()));
  });
  if (!asked.ok()) {
    AddRetryHint(asked, context);
    reactor->Finish(ToGrpcStatus(asked));
  }
  return reactor;
}

}  // namespace baton
