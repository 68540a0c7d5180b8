#include "common/base/wire_status.h"

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

constexpr int32_t kCodeMax = 16;
static_assert(static_cast<int32_t>(absl::StatusCode::kUnauthenticated) == kCodeMax);

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

}  // namespace

std::string WireMessage(const absl::Status& status) {
  const std::string text(status.message());
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

absl::Status FailureFromWire(int32_t code, const std::string& message) {
  if (code > 0 && code <= kCodeMax) {
    return absl::Status(static_cast<absl::StatusCode>(code), message);
  }
  return absl::InternalError(absl::StrCat("a worker failed with code ", code, ": ", message));
}

}  // namespace baton
