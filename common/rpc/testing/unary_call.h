// Calls by a method's name and with a message's bytes, without generated code: for tests of what
// servers answer to anybody.
#ifndef BATON_COMMON_RPC_TESTING_UNARY_CALL_H_
#define BATON_COMMON_RPC_TESTING_UNARY_CALL_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace baton {

// grpc.health.v1: its method, and a HealthCheckResponse as it is on the wire. An empty request is
// about the whole server.
inline constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";
inline constexpr char kServing[] = "\x08\x01";
inline constexpr char kNotServing[] = "\x08\x02";

// Waits for the answer's bytes, for at most a minute. Of a method that streams: the first answer.
absl::StatusOr<std::string> UnaryCall(const std::shared_ptr<grpc::Channel>& channel,
                                      const std::string& method, const std::string& request);
// The same with metadata, and for who wants to look at the call afterwards.
absl::StatusOr<std::string> UnaryCall(const std::shared_ptr<grpc::Channel>& channel,
                                      const std::string& method, const std::string& request,
                                      grpc::ClientContext& context);

}  // namespace baton

#endif  // BATON_COMMON_RPC_TESTING_UNARY_CALL_H_
