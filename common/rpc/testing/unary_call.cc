#include "common/rpc/testing/unary_call.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <chrono>

#include "common/base/check.h"
#include "common/rpc/status_codec.h"

namespace baton {

absl::StatusOr<std::string> UnaryCall(const std::shared_ptr<grpc::Channel>& channel,
                                      const std::string& method, const std::string& request,
                                      grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  grpc::GenericStub stub(channel);
  const grpc::Slice slice(request);
  const grpc::ByteBuffer message(&slice, 1);
  // Its Next writes the answer in this thread. A callback in one of gRPC's threads would be a
  // hand-over that ThreadSanitizer does not see.
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, method, message, &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, /*tag=*/nullptr);
  void* tag = nullptr;
  bool ok = false;
  BATON_CHECK(queue.Next(&tag, &ok));
  if (!status.ok()) return FromGrpcStatus(status);
  grpc::Slice bytes;
  BATON_CHECK(answer.DumpToSingleSlice(&bytes).ok());
  return std::string(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
}

absl::StatusOr<std::string> UnaryCall(const std::shared_ptr<grpc::Channel>& channel,
                                      const std::string& method, const std::string& request) {
  grpc::ClientContext context;
  return UnaryCall(channel, method, request, context);
}

}  // namespace baton
