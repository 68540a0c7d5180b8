#include "common/kernels/thread_placement.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace baton {
namespace {

// Far beyond what Linux numbers; a damaged list must not fill memory.
constexpr uint32_t kProcessorsMax = 1 << 16;

// The processors of one node in the order of use: one of each core, then the others.
struct Node {
  uint32_t id = 0;
  uint32_t cores = 0;
  std::vector<uint32_t> order;
};

std::vector<Node> NodesByCores(absl::Span<const Processor> usable) {
  std::map<uint32_t, Node> nodes;
  std::map<uint32_t, std::vector<uint32_t>> siblings;  // By node.
  std::set<uint32_t> cores;
  for (const Processor& processor : usable) {
    Node& node = nodes[processor.node];
    node.id = processor.node;
    if (cores.insert(processor.core).second) {
      ++node.cores;
      node.order.push_back(processor.id);
    } else {
      siblings[processor.node].push_back(processor.id);
    }
  }
  std::vector<Node> sorted;
  for (auto& [id, node] : nodes) {
    node.order.insert(node.order.end(), siblings[id].begin(), siblings[id].end());
    sorted.push_back(std::move(node));
  }
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Node& a, const Node& b) { return a.cores > b.cores; });
  return sorted;
}

// How many threads each node gets. `limit` says what a node can take.
template <typename Limit>
std::vector<uint32_t> Deal(absl::Span<const Node> nodes, uint32_t count, Limit limit) {
  std::vector<uint32_t> dealt(nodes.size(), 0);
  while (count > 0) {
    for (size_t i = 0; i < nodes.size() && count > 0; ++i) {
      if (dealt[i] >= limit(nodes[i])) continue;
      ++dealt[i];
      --count;
    }
  }
  return dealt;
}

std::string ReadLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

std::vector<uint32_t> PlaceThreads(absl::Span<const Processor> usable, uint32_t count) {
  count = std::min<uint32_t>(count, static_cast<uint32_t>(usable.size()));
  std::vector<Node> nodes = NodesByCores(usable);

  uint32_t cores = 0;
  size_t needed = 0;
  while (needed < nodes.size() && cores < count) cores += nodes[needed++].cores;
  std::vector<uint32_t> dealt;
  if (cores >= count) {
    nodes.resize(needed);
    dealt = Deal(nodes, count, [](const Node& node) { return node.cores; });
  } else {
    dealt = Deal(nodes, count, [](const Node& node) { return node.order.size(); });
  }

  std::vector<uint32_t> placed;
  for (size_t i = 0; i < nodes.size(); ++i) {
    placed.insert(placed.end(), nodes[i].order.begin(), nodes[i].order.begin() + dealt[i]);
  }
  return placed;
}

std::vector<Processor> UsableProcessors() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return {};

  std::map<uint32_t, uint32_t> node_of;
  for (uint32_t node : ParseProcessorList(ReadLine("/sys/devices/system/node/online"))) {
    const std::string path = absl::StrCat("/sys/devices/system/node/node", node, "/cpulist");
    for (uint32_t id : ParseProcessorList(ReadLine(path))) node_of[id] = node;
  }
  std::vector<Processor> usable;
  for (uint32_t id = 0; id < CPU_SETSIZE; ++id) {
    if (!CPU_ISSET(id, &allowed)) continue;
    const std::vector<uint32_t> siblings = ParseProcessorList(ReadLine(
        absl::StrCat("/sys/devices/system/cpu/cpu", id, "/topology/thread_siblings_list")));
    usable.push_back({.id = id,
                      .node = node_of.contains(id) ? node_of[id] : 0,
                      .core = siblings.empty() ? id : siblings.front()});
  }
  return usable;
}

std::vector<uint32_t> ParseProcessorList(absl::string_view text) {
  std::vector<uint32_t> ids;
  for (absl::string_view part : absl::StrSplit(absl::StripAsciiWhitespace(text), ',')) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(part, absl::MaxSplits('-', 1));
    uint32_t first;
    if (!absl::SimpleAtoi(ends.first, &first)) break;
    uint32_t last = first;
    if (!ends.second.empty() && !absl::SimpleAtoi(ends.second, &last)) break;
    if (last >= kProcessorsMax) break;
    for (uint32_t id = first; id <= last; ++id) ids.push_back(id);
  }
  return ids;
}

}  // namespace baton
