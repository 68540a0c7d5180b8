// How `baton` shows things: JSON for scripts, tables for people. Pure functions.
#ifndef BATON_ROUTER_CLI_OUTPUT_H_
#define BATON_ROUTER_CLI_OUTPUT_H_

#include <string>

#include "proto/inference.pb.h"
#include "router/cli/client.h"

namespace baton::cli {

// Each is one JSON object on one line, with its newline.
std::string AnswerJson(const Answer& answer, bool with_logprobs);
std::string TextJson(const std::string& text);
std::string ClusterJson(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model);

std::string TimingsTable(const Answer& answer);
std::string ClusterTable(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_OUTPUT_H_
