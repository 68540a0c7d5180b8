#include "common/rpc/status_codec.h"

namespace baton {
namespace {

// Codes are equal in absl::Status, gRPC and google.rpc.Code: 0 (OK) to 16 (UNAUTHENTICATED).
constexpr int kCodeMax = 16;
static_assert(static_cast<int>(absl::StatusCode::kOk) == grpc::StatusCode::OK);
static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) == kCodeMax);
static_assert(grpc::StatusCode::UNAUTHENTICATED == kCodeMax);

absl::StatusCode ToCode(int code) {
  return code < 0 || code > kCodeMax ? absl::StatusCode::kUnknown
                                     : static_cast<absl::StatusCode>(code);
}

// The length of the UTF-8 character that starts at `position`, or 0 if none does: RFC 3629, which
// excludes overlong forms, surrogates and what lies above U+10FFFF.
size_t Utf8Length(const std::string& text, size_t position) {
  const auto byte = [&text](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto in = [](unsigned value, unsigned low, unsigned high) {
    return value >= low && value <= high;
  };
  const unsigned first = byte(position);
  const unsigned second = byte(position + 1);
  if (first < 0x80) return 1;
  if (in(first, 0xC2, 0xDF)) return in(second, 0x80, 0xBF) ? 2 : 0;
  const bool third_ok = in(byte(position + 2), 0x80, 0xBF);
  if (in(first, 0xE0, 0xEF)) {
    const bool second_ok = in(second, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF);
    return second_ok && third_ok ? 3 : 0;
  }
  if (!in(first, 0xF0, 0xF4)) return 0;
  const bool second_ok = in(second, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF);
  return second_ok && third_ok && in(byte(position + 3), 0x80, 0xBF) ? 4 : 0;
}

// Protobuf refuses to parse a string field that is no UTF-8, which would break a whole session.
std::string SafeMessage(absl::string_view message) {
  const std::string text(message);
  std::string safe;
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    const size_t step = length == 0 ? 1 : length;
    if (safe.size() + step > kStatusMessageBytesMax) break;
    if (length == 0) {
      safe += '?';
    } else {
      safe.append(text, i, length);
    }
    i += step;
  }
  return safe;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), SafeMessage(status.message()));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return FromWire(status.error_code(), status.error_message());
}

int32_t ToWireCode(const absl::Status& status) { return static_cast<int32_t>(status.code()); }

std::string ToWireMessage(const absl::Status& status) { return SafeMessage(status.message()); }

absl::Status FromWire(int32_t code, const std::string& message) {
  return absl::Status(ToCode(code), message);
}

}  // namespace baton
