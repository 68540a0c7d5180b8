// The log: one line per event on stderr, "time level program: event key=value …".
//
//   LogInfo("session opened", {{"worker", address}, {"request", request_id}});
//
// An event is a fixed lower-case phrase, so that it can be searched for; what varies goes into
// fields. Values with spaces are quoted and control characters escaped: a client's text cannot
// forge a line. Thread-safe. Log once, where a failure is first detected.
#ifndef BATON_COMMON_TELEMETRY_LOG_H_
#define BATON_COMMON_TELEMETRY_LOG_H_

#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"

namespace baton {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  LogField(std::string field_name, std::string field_value)
      : name(std::move(field_name)), value(std::move(field_value)) {}
  LogField(std::string field_name, const char* field_value)
      : name(std::move(field_name)), value(field_value) {}
  LogField(std::string field_name, double number);
  template <typename Integer>
  requires std::is_integral_v<Integer> LogField(std::string field_name, Integer number)
      : name(std::move(field_name)), value(std::to_string(number)) {}
  LogField(std::string field_name, const absl::Status& status);

  std::string name;
  std::string value;
};
using LogFields = std::initializer_list<LogField>;

// Sets the program's name and the lowest level shown. Before it is called: "baton", info.
// INVALID_ARGUMENT unless `level` is debug, info, warning, error or off.
absl::Status InitLog(const std::string& program, const std::string& level);
// The same by the flag --log_level, which a program has if it calls this.
absl::Status InitLogFromFlags(const std::string& program);

// Whether a line of this level would be shown; for fields that are costly to make.
bool LogEnabled(LogLevel level);

void Log(LogLevel level, const std::string& event, LogFields fields = {});
inline void LogDebug(const std::string& event, LogFields fields = {}) {
  Log(LogLevel::kDebug, event, fields);
}
inline void LogInfo(const std::string& event, LogFields fields = {}) {
  Log(LogLevel::kInfo, event, fields);
}
inline void LogWarning(const std::string& event, LogFields fields = {}) {
  Log(LogLevel::kWarning, event, fields);
}
inline void LogError(const std::string& event, LogFields fields = {}) {
  Log(LogLevel::kError, event, fields);
}

// The text of one line without time, level and program; for tests.
std::string FormatLogLine(const std::string& event, LogFields fields);

}  // namespace baton

#endif  // BATON_COMMON_TELEMETRY_LOG_H_
