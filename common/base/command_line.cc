#include "common/base/command_line.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

// Separates the values of a RepeatedString in its text form, which also starts with it.
constexpr char kRecordSeparator = '\x1e';
constexpr int kFlagFileDepthMax = 8;
constexpr size_t kFlagFileBytesMax = 1 << 20;
constexpr size_t kHelpColumn = 6;
constexpr size_t kHelpWidth = 100;

struct Unit {
  const char* name;
  uint64_t bytes;
};

// In lower case, but for the decimal ones: k and kib are powers of 1024, kb of 1000.
constexpr Unit kUnits[] = {
    {"", 1},
    {"b", 1},
    {"k", 1ull << 10},
    {"ki", 1ull << 10},
    {"kib", 1ull << 10},
    {"kb", 1'000},
    {"m", 1ull << 20},
    {"mi", 1ull << 20},
    {"mib", 1ull << 20},
    {"mb", 1'000'000},
    {"g", 1ull << 30},
    {"gi", 1ull << 30},
    {"gib", 1ull << 30},
    {"gb", 1'000'000'000},
    {"t", 1ull << 40},
    {"ti", 1ull << 40},
    {"tib", 1ull << 40},
    {"tb", 1'000'000'000'000},
};

absl::Status BadByteSize(const std::string& text) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", text,
                   "' is not a size: write bytes, or a number with k, M, G, T, "
                   "KiB, MiB, GiB, TiB (1024) or kB, MB, GB, TB (1000)"));
}

std::string EnvironmentName(absl::string_view flag) {
  return absl::StrCat("BATON_", absl::AsciiStrToUpper(flag));
}

// Sets flags from arguments and files, in the order in which they are met.
class ArgumentParser {
 public:
  absl::Status Parse(const std::vector<std::string>& arguments, int depth);
  absl::Status ReadFlagFiles(const std::string& paths, int depth);
  // Gives the repeated flags all their values. After Parse.
  absl::Status SetRepeated();

  CommandLine& result() { return result_; }

 private:
  absl::Status ParseOne(const std::vector<std::string>& arguments, size_t* position, int depth);
  absl::Status Set(absl::CommandLineFlag* flag, const std::string& name, const std::string& value);
  absl::Status ReadFlagFile(const std::string& path, int depth);

  CommandLine result_;
  std::map<std::string, RepeatedString> repeated_;
};

absl::Status ArgumentParser::Parse(const std::vector<std::string>& arguments, int depth) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      result_.positional.insert(result_.positional.end(), arguments.begin() + i + 1,
                                arguments.end());
      return absl::OkStatus();
    }
    // A lone "-" is a file name by custom, and "-1" is no flag of ours.
    const bool is_flag =
        argument.size() > 1 && argument[0] == '-' && !absl::ascii_isdigit(argument[1]);
    if (!is_flag) {
      result_.positional.push_back(argument);
      continue;
    }
    BATON_RETURN_IF_ERROR(ParseOne(arguments, &i, depth));
  }
  return absl::OkStatus();
}

absl::Status ArgumentParser::ParseOne(const std::vector<std::string>& arguments, size_t* position,
                                      int depth) {
  std::string name = arguments[*position].substr(arguments[*position].starts_with("--") ? 2 : 1);
  std::optional<std::string> value;
  if (const size_t equals = name.find('='); equals != std::string::npos) {
    value = name.substr(equals + 1);
    name.resize(equals);
  }
  if (!value && (name == "help" || name == "h")) {
    result_.help = true;
    return absl::OkStatus();
  }
  if (!value && name == "version") {
    result_.version = true;
    return absl::OkStatus();
  }
  const bool is_flag_file = name == "flagfile";
  absl::CommandLineFlag* flag = is_flag_file ? nullptr : absl::FindCommandLineFlag(name);
  if (flag == nullptr && !is_flag_file) {
    absl::CommandLineFlag* negated =
        name.starts_with("no") && !value ? absl::FindCommandLineFlag(name.substr(2)) : nullptr;
    if (negated != nullptr && negated->IsOfType<bool>()) return Set(negated, name, "false");
    return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name));
  }
  if (!value && flag != nullptr && flag->IsOfType<bool>()) {
    // Numbers may be arguments, as the ids of tokens are.
    const bool has_word = *position + 1 < arguments.size() && (arguments[*position + 1] == "true" ||
                                                               arguments[*position + 1] == "false");
    value = has_word ? arguments[++*position] : "true";
  }
  if (!value) {
    if (*position + 1 >= arguments.size()) {
      return absl::InvalidArgumentError(absl::StrCat("flag --", name, " needs a value"));
    }
    value = arguments[++*position];
  }
  return is_flag_file ? ReadFlagFiles(*value, depth) : Set(flag, name, *value);
}

absl::Status ArgumentParser::Set(absl::CommandLineFlag* flag, const std::string& name,
                                 const std::string& value) {
  std::string error;
  if (flag->IsOfType<RepeatedString>()) {
    RepeatedString one;
    if (!AbslParseFlag(value, &one, &error)) {
      return absl::InvalidArgumentError(absl::StrCat("flag --", name, ": ", error));
    }
    std::vector<std::string>& values = repeated_[name].values;
    values.insert(values.end(), one.values.begin(), one.values.end());
    return absl::OkStatus();
  }
  if (!flag->ParseFrom(value, &error)) {
    return absl::InvalidArgumentError(absl::StrCat("flag --", name, ": ", error));
  }
  return absl::OkStatus();
}

absl::Status ArgumentParser::SetRepeated() {
  for (const auto& [name, list] : repeated_) {
    std::string error;
    if (!absl::FindCommandLineFlag(name)->ParseFrom(AbslUnparseFlag(list), &error)) {
      return absl::InvalidArgumentError(absl::StrCat("flag --", name, ": ", error));
    }
  }
  return absl::OkStatus();
}

absl::Status ArgumentParser::ReadFlagFiles(const std::string& paths, int depth) {
  for (const auto path : absl::StrSplit(paths, ',', absl::SkipWhitespace())) {
    BATON_RETURN_IF_ERROR(ReadFlagFile(std::string(path), depth + 1));
  }
  return absl::OkStatus();
}

// One flag per line, as on the command line but without a shell's quotes: "--name=value" or
// "--name value". Empty lines and lines that start with '#' are skipped.
absl::Status ArgumentParser::ReadFlagFile(const std::string& path, int depth) {
  if (depth > kFlagFileDepthMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("flag file ", path, ": files include each other too deeply"));
  }
  std::ifstream file(path);
  std::string text(kFlagFileBytesMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof()) {
    return absl::InvalidArgumentError(
        absl::StrCat("flag file ", path, ": ", file.is_open() ? "too large" : "cannot be read"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  int line_number = 0;
  for (const auto raw_line : absl::StrSplit(text, '\n')) {
    ++line_number;
    const std::string line(absl::StripAsciiWhitespace(raw_line));
    if (line.empty() || line[0] == '#') continue;
    std::vector<std::string> arguments = {line};
    const size_t space = line.find_first_of(" \t");
    if (space != std::string::npos && space < line.find('=')) {
      arguments = {line.substr(0, space),
                   std::string(absl::StripAsciiWhitespace(line.substr(space)))};
    }
    const size_t positional = result_.positional.size();
    absl::Status status = line != "--" ? Parse(arguments, depth) : absl::OkStatus();
    if (status.ok() && (line == "--" || result_.positional.size() > positional)) {
      status = absl::InvalidArgumentError(absl::StrCat("'", line, "' is no flag"));
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("flag file ", path, " line ", line_number,
                                                     ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

absl::Status SetFromEnvironment(const Environment& environment) {
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    const std::string variable = EnvironmentName(name);
    const std::optional<std::string> value = environment(variable);
    std::string error;
    if (value && !flag->ParseFrom(*value, &error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("environment variable ", variable, ": ", error));
    }
  }
  return absl::OkStatus();
}

// The folder of a source file, relative to the root of the source tree.
std::string SourceFolder(const std::string& file) {
  // Abseil takes the leading slashes off the names that it reports.
  const std::string here =
      std::string(__FILE__).substr(std::string(__FILE__).find_first_not_of('/'));
  const std::string root = here.substr(0, here.rfind("common/base/"));
  const std::string path = file.starts_with(root) ? file.substr(root.size()) : file;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// Appends `text` indented and broken into lines.
void AppendWrapped(const std::string& text, std::string* out) {
  for (const auto paragraph : absl::StrSplit(text, '\n')) {
    std::string line(kHelpColumn, ' ');
    for (const auto word : absl::StrSplit(paragraph, ' ', absl::SkipEmpty())) {
      if (line.size() > kHelpColumn && line.size() + word.size() + 1 > kHelpWidth) {
        absl::StrAppend(out, line, "\n");
        line.assign(kHelpColumn, ' ');
      }
      if (line.size() > kHelpColumn) line += ' ';
      line.append(word.data(), word.size());
    }
    absl::StrAppend(out, line, "\n");
  }
}

void AppendFlagHelp(const absl::CommandLineFlag& flag, std::string* out) {
  absl::StrAppend(out, "  --", std::string(flag.Name()), "\n");
  std::string default_value = flag.DefaultValue();
  std::replace(default_value.begin(), default_value.end(), kRecordSeparator, ' ');
  absl::StripAsciiWhitespace(&default_value);
  if (default_value.empty()) default_value = "none";
  AppendWrapped(absl::StrCat(flag.Help(), " (default: ", default_value, ")"), out);
}

std::string WithoutTrailingNewlines(const std::string& text) {
  return std::string(absl::StripTrailingAsciiWhitespace(text));
}

}  // namespace

absl::StatusOr<ByteSize> ParseByteSize(const std::string& text) {
  const std::string stripped(absl::StripAsciiWhitespace(text));
  const size_t number_end = std::min(stripped.find_first_not_of("0123456789."), stripped.size());
  const std::string number = stripped.substr(0, number_end);
  const std::string unit =
      absl::AsciiStrToLower(absl::StripLeadingAsciiWhitespace(stripped.substr(number_end)));
  const Unit* found = std::find_if(std::begin(kUnits), std::end(kUnits),
                                   [&unit](const Unit& known) { return unit == known.name; });
  if (number.empty() || found == std::end(kUnits)) return BadByteSize(text);
  if (uint64_t whole; absl::SimpleAtoi(number, &whole)) {
    if (whole > std::numeric_limits<uint64_t>::max() / found->bytes) return BadByteSize(text);
    return ByteSize{whole * found->bytes};
  }
  double fraction;
  if (!absl::SimpleAtod(number, &fraction)) return BadByteSize(text);
  const double bytes = fraction * static_cast<double>(found->bytes);
  // Doubles hold every whole number below 2^53 exactly: 9 PB are enough for the fractional form.
  if (!(bytes < 0x1p53) || bytes != std::floor(bytes)) return BadByteSize(text);
  return ByteSize{static_cast<uint64_t>(bytes)};
}

bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error) {
  const absl::StatusOr<ByteSize> parsed = ParseByteSize(std::string(text));
  if (!parsed.ok()) {
    *error = std::string(parsed.status().message());
    return false;
  }
  *size = *parsed;
  return true;
}

std::string AbslUnparseFlag(const ByteSize& size) {
  constexpr Unit kShown[] = {
      {"TiB", 1ull << 40}, {"GiB", 1ull << 30}, {"MiB", 1ull << 20}, {"KiB", 1ull << 10}};
  for (const Unit& unit : kShown) {
    if (size.bytes != 0 && size.bytes % unit.bytes == 0) {
      return absl::StrCat(size.bytes / unit.bytes, unit.name);
    }
  }
  return absl::StrCat(size.bytes);
}

bool AbslParseFlag(absl::string_view text, RepeatedString* list, std::string* error) {
  const std::string value(text);
  list->values.clear();
  if (value.empty() || value[0] != kRecordSeparator) {
    if (value.find(kRecordSeparator) != std::string::npos) {
      *error = "the control character 0x1E cannot be part of a value";
      return false;
    }
    list->values.push_back(value);
    return true;
  }
  list->values = absl::StrSplit(value.substr(1), kRecordSeparator);
  // The separator alone is the empty list: a list of one empty value is written as the empty text.
  if (value.size() == 1) list->values.clear();
  return true;
}

std::string AbslUnparseFlag(const RepeatedString& list) {
  if (list.values.size() == 1) return list.values[0];
  std::string text(1, kRecordSeparator);
  for (size_t i = 0; i < list.values.size(); ++i) {
    if (i > 0) text += kRecordSeparator;
    text += list.values[i];
  }
  return text;
}

absl::StatusOr<HostPort> ParseHostPort(const std::string& text) {
  const auto bad = [&text](const char* why) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not an address host:port: ", why));
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return bad("there is no port");
  HostPort address;
  address.host = text.substr(0, colon);
  if (address.host.size() >= 2 && address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return bad("an IPv6 address is written in brackets");
  }
  if (address.host.empty()) return bad("there is no host (0.0.0.0 listens on all)");
  if (address.host.find_first_of(" \t\r\n[]/,") != std::string::npos) {
    return bad("the host has a character that no host name has");
  }
  const std::string port_text = text.substr(colon + 1);
  uint32_t port = 0;
  const bool digits_only = !port_text.empty() && port_text.size() <= 5 &&
                           std::all_of(port_text.begin(), port_text.end(), absl::ascii_isdigit);
  if (!digits_only || !absl::SimpleAtoi(port_text, &port) || port > 65535) {
    return bad("the port is not a number from 0 to 65535");
  }
  address.port = static_cast<uint16_t>(port);
  return address;
}

std::string FormatHostPort(const HostPort& address) {
  const bool is_v6 = address.host.find(':') != std::string::npos;
  return is_v6 ? absl::StrCat("[", address.host, "]:", address.port)
               : absl::StrCat(address.host, ":", address.port);
}

absl::StatusOr<CommandLine> SetFlags(const std::vector<std::string>& arguments,
                                     const Environment& environment) {
  ArgumentParser parser;
  BATON_RETURN_IF_ERROR(SetFromEnvironment(environment));
  // The file that the environment names is read first, so that the command line wins over it; its
  // repeated flags are replaced by the command line's, not added to.
  if (const auto paths = environment(EnvironmentName("flagfile")); paths && !paths->empty()) {
    ArgumentParser file_parser;
    BATON_RETURN_IF_ERROR(file_parser.ReadFlagFiles(*paths, 0));
    BATON_RETURN_IF_ERROR(file_parser.SetRepeated());
  }
  BATON_RETURN_IF_ERROR(parser.Parse(arguments, 0));
  BATON_RETURN_IF_ERROR(parser.SetRepeated());
  return std::move(parser.result());
}

std::string HelpText(const ProgramInfo& info) {
  std::string out = absl::StrCat(info.name, ": ", info.summary, "\n\n");
  if (!info.usage.empty()) absl::StrAppend(&out, WithoutTrailingNewlines(info.usage), "\n\n");
  // Sorted by (common or not, folder, name): the program's own flags come first.
  std::map<std::pair<bool, std::string>, std::map<std::string, absl::CommandLineFlag*>> groups;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (flag->IsRetired()) continue;
    const std::string folder = SourceFolder(flag->Filename());
    groups[{folder.starts_with("common"), folder}][std::string(name)] = flag;
  }
  for (const auto& [group, flags] : groups) {
    absl::StrAppend(&out, "Flags of ", group.second, ":\n");
    for (const auto& [name, flag] : flags) AppendFlagHelp(*flag, &out);
    out += "\n";
  }
  absl::StrAppend(&out, "Flags of every program:\n",
                  "  --flagfile\n      Files with one flag per line, separated by commas.\n",
                  "  --help\n      Prints this.\n", "  --version\n      Prints the version.\n\n");
  absl::StrAppend(
      &out,
      "--name=value and --name value are the same; --name and --noname set a switch. A\n"
      "flag may also be given by the environment as BATON_<NAME> (BATON_FLAGFILE too).\n"
      "The command line wins over flag files, and these over the environment.\n");
  return out;
}

std::vector<std::string> ParseCommandLine(int argc, char** argv, const ProgramInfo& info) {
  // As Debian builds it, Abseil writes down the order of all locks to find deadlocks, under one
  // lock of the process, and ends it when it believes to have found one.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  const Environment environment = [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
  absl::StatusOr<CommandLine> command_line = SetFlags(arguments, environment);
  if (!command_line.ok()) {
    std::fprintf(stderr, "%s: %s (--help lists all flags)\n", info.name.c_str(),
                 std::string(command_line.status().message()).c_str());
    std::exit(1);
  }
  if (command_line->help) {
    std::fputs(HelpText(info).c_str(), stdout);
    std::exit(0);
  }
  if (command_line->version) {
    std::printf("%s %s\n", info.name.c_str(), info.version.c_str());
    std::exit(0);
  }
  if (!info.takes_arguments && !command_line->positional.empty()) {
    std::fprintf(stderr,
                 "%s: '%s' is no flag, and nothing else is expected (--help lists all flags)\n",
                 info.name.c_str(), command_line->positional.front().c_str());
    std::exit(1);
  }
  return std::move(command_line->positional);
}

}  // namespace baton
