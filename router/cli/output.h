// How `baton` shows what is not an answer: JSON for scripts, tables for people. Pure functions.
#ifndef BATON_ROUTER_CLI_OUTPUT_H_
#define BATON_ROUTER_CLI_OUTPUT_H_

#include <string>

#include "absl/status/statusor.h"
#include "proto/inference.pb.h"

namespace baton::cli {

// Each is one JSON object on one line, with its newline.
std::string TextJson(const std::string& text);
std::string ClusterJson(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model);

std::string ClusterTable(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model);

// What that process at `address` still has to do before it exits. Empty: it is gone. kUnavailable:
// it went before it was done.
absl::StatusOr<std::string> DrainProgress(const v1::GetClusterResponse& cluster,
                                          const std::string& address, uint64_t incarnation);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_OUTPUT_H_
