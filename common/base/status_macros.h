// Early returns for absl::Status and absl::StatusOr.
#ifndef BATON_COMMON_BASE_STATUS_MACROS_H_
#define BATON_COMMON_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define BATON_RETURN_IF_ERROR(expression)                               \
  do {                                                                  \
    if (absl::Status baton_status = (expression); !baton_status.ok()) { \
      return baton_status;                                              \
    }                                                                   \
  } while (false)

// BATON_ASSIGN_OR_RETURN(auto value, Compute());
#define BATON_ASSIGN_OR_RETURN(lhs, expression) \
  BATON_ASSIGN_OR_RETURN_IMPL(BATON_CONCAT(baton_status_or_, __LINE__), lhs, expression)

#define BATON_CONCAT_IMPL(a, b) a##b
#define BATON_CONCAT(a, b) BATON_CONCAT_IMPL(a, b)
#define BATON_ASSIGN_OR_RETURN_IMPL(result, lhs, expression) \
  auto result = (expression);                                \
  if (!result.ok()) {                                        \
    return std::move(result).status();                       \
  }                                                          \
  lhs = *std::move(result)

#endif  // BATON_COMMON_BASE_STATUS_MACROS_H_
