// How `baton` shows what is not an answer: JSON for scripts, tables for people. Pure functions.
#ifndef BATON_ROUTER_CLI_OUTPUT_H_
#define BATON_ROUTER_CLI_OUTPUT_H_

#include <cstdint>
#include <string>

#include "proto/inference.pb.h"

namespace baton::cli {

// Each is one JSON object on one line, with its newline.
std::string TextJson(const std::string& text);
std::string ClusterJson(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model);

std::string ClusterTable(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model);

// How far a process is that was told to drain.
struct DrainProgress {
  enum class State {
    kDraining,
    kDrained,    // Nothing is left on it. It is about to go, or has gone.
    kSilent,     // Its session broke before it was done. It may come back.
    kForgotten,  // The router is another one, which does not know that it was told.
    kGone,       // It is not there any more, and whether it was done cannot be said.
  };
  State state = State::kGone;
  bool there = false;  // It has a session.
  std::string line;    // For people.
};
DrainProgress ProgressOfDrain(const v1::GetClusterResponse& cluster, const std::string& address,
                              uint64_t incarnation);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_OUTPUT_H_
