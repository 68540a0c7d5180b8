// Everything that came back for one request, and how programs show it: JSON for scripts, tables for
// people.
//
// Pure functions; any thread.
#ifndef BATON_COMMON_REQUEST_ANSWER_H_
#define BATON_COMMON_REQUEST_ANSWER_H_

#include <string>
#include <vector>

#include "proto/inference.pb.h"

namespace baton {

struct Answer {
  v1::Started started;
  std::vector<v1::Token> tokens;
  std::string text;
  v1::Finished finished;
};

// One JSON object on one line, with its newline.
std::string AnswerJson(const Answer& answer, bool with_logprobs);

// What each stage took, one a line.
std::string TimingsTable(const Answer& answer);

// Columns as wide as their widest cell. An empty table is empty.
std::string Table(const std::vector<std::vector<std::string>>& rows);

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_ANSWER_H_
