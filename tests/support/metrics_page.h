// What a process's metrics say right now.
#ifndef BATON_TESTS_SUPPORT_METRICS_PAGE_H_
#define BATON_TESTS_SUPPORT_METRICS_PAGE_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace baton {

// By name with labels, as they stand on the page: `baton_moves_total{result="done"}`.
using MetricsPage = std::map<std::string, double>;

// `address`: host:port that a process printed after "metrics on".
absl::StatusOr<MetricsPage> ReadMetrics(const std::string& address);

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_METRICS_PAGE_H_
