// Checks for programmer errors, on in every build. A failed check prints the condition, the place
// and a message, and aborts: the process is in a state that nobody designed.
//
// Expected failures (peer gone, pool full, bad request) are absl::Status, never a check.
#ifndef BATON_COMMON_BASE_CHECK_H_
#define BATON_COMMON_BASE_CHECK_H_

#include <string>

namespace baton {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);

}  // namespace baton

#define BATON_CHECK(condition) BATON_CHECK_MSG(condition, "")

#define BATON_CHECK_MSG(condition, message)                          \
  do {                                                               \
    if (!(condition)) [[unlikely]] {                                 \
      ::baton::CheckFailed(__FILE__, __LINE__, #condition, message); \
    }                                                                \
  } while (false)

#define BATON_CHECK_OK(expression)                                                    \
  do {                                                                                \
    if (const absl::Status baton_status = (expression); !baton_status.ok()) {         \
      ::baton::CheckFailed(__FILE__, __LINE__, #expression, baton_status.ToString()); \
    }                                                                                 \
  } while (false)

#endif  // BATON_COMMON_BASE_CHECK_H_
