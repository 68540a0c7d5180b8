// Reads a request from the bytes of a call. Protobuf refuses a message with text that is not UTF-8
// as a whole, and gRPC then answers without a word on why; clients deserve the field's name.
//
// Pure functions; any thread.
#ifndef BATON_ROUTER_WIRE_REQUEST_H_
#define BATON_ROUTER_WIRE_REQUEST_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace baton {

// kInvalidArgument: the message begins with the name of the field whose text is not UTF-8; or the
// bytes are no message of this type.
absl::Status ParseWireRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* request);

grpc::ByteBuffer ToWire(const google::protobuf::Message& response);

}  // namespace baton

#endif  // BATON_ROUTER_WIRE_REQUEST_H_
