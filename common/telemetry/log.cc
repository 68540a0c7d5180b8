#include "common/telemetry/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace baton {
namespace {

constexpr char kLoggerName[] = "baton";
constexpr size_t kValueBytesMax = 4096;

// The process's logger lives in spdlog's registry, where a module that is loaded later
// (libbaton_cuda.so has a copy of this file) finds it; made by whoever logs first.
spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    if (auto made_before = spdlog::get(kLoggerName)) return made_before;
    auto made = spdlog::stderr_logger_mt(kLoggerName);
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%f%z %L baton: %v");
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

bool NeedsQuotes(const std::string& value) {
  if (value.empty()) return true;
  for (const char c : value) {
    if (c == ' ' || c == '"' || c == '=' || c == '\\' || absl::ascii_iscntrl(c)) return true;
  }
  return false;
}

}  // namespace

LogField::LogField(std::string field_name, double number)
    : name(std::move(field_name)), value(absl::StrCat(number)) {}

LogField::LogField(std::string field_name, const absl::Status& status)
    : name(std::move(field_name)), value(status.ToString()) {}

absl::Status InitLog(const std::string& program, const std::string& level) {
  constexpr struct {
    const char* name;
    spdlog::level::level_enum level;
  } kLevels[] = {{"debug", spdlog::level::debug},
                 {"info", spdlog::level::info},
                 {"warning", spdlog::level::warn},
                 {"error", spdlog::level::err},
                 {"off", spdlog::level::off}};
  for (const auto& known : kLevels) {
    if (level != known.name) continue;
    Logger().set_pattern(absl::StrCat("%Y-%m-%dT%H:%M:%S.%f%z %L ", program, ": %v"));
    Logger().set_level(known.level);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--log_level: '", level, "' is none of debug, info, warning, error, off"));
}

bool LogEnabled(LogLevel level) { return Logger().should_log(ToSpdlog(level)); }

void Log(LogLevel level, const std::string& event, LogFields fields) {
  if (!LogEnabled(level)) return;
  Logger().log(ToSpdlog(level), spdlog::string_view_t(FormatLogLine(event, fields)));
}

std::string FormatLogLine(const std::string& event, LogFields fields) {
  std::string line = absl::Utf8SafeCEscape(event);
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.name, "=");
    std::string value = field.value.substr(0, kValueBytesMax);
    if (value.size() < field.value.size()) value += "...";
    if (NeedsQuotes(value)) {
      absl::StrAppend(&line, "\"", absl::Utf8SafeCEscape(value), "\"");
    } else {
      line += value;
    }
  }
  return line;
}

}  // namespace baton
