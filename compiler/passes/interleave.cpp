// Two guidance branches on one rank: one after the other becomes turn by turn.

#include <algorithm>
#include <iterator>

#include "compiler/passes/passes.hpp"

namespace orrery::compiler {
namespace {

using Nodes = std::vector<Node>;

/// "block3" of "block3.prompt.attn1.q"; everything before and after the blocks is a part of its own.
std::string_view block_of(const Node& node) {
  const std::string_view label = node.label;
  return label.starts_with("block") ? label.substr(0, label.find('.')) : std::string_view();
}

/// Where a branch gives way: after a node that exchanges, when its result can come meanwhile, and after each block.
std::size_t turn_end(const Nodes& nodes, std::size_t from) {
  for (auto at = from; at < nodes.size(); ++at)
    if (is_exchange(nodes[at].op) || at + 1 == nodes.size() || block_of(nodes[at]) != block_of(nodes[at + 1])) return at + 1;
  return nodes.size();
}

Nodes take_turns(Nodes first, Nodes second) {
  Nodes merged;
  merged.reserve(first.size() + second.size());
  std::size_t a = 0, b = 0;
  const auto turn = [&](Nodes& from, std::size_t& at) {
    const auto end = turn_end(from, at);
    std::move(from.begin() + static_cast<std::ptrdiff_t>(at), from.begin() + static_cast<std::ptrdiff_t>(end), std::back_inserter(merged));
    at = end;
  };
  while (a < first.size() || b < second.size()) {
    turn(first, a);
    turn(second, b);
  }
  return merged;
}

}  // namespace

Graph interleave(Graph graph) {
  for (auto& program : graph.programs) {
    Nodes nodes;
    for (std::size_t at = 0; at < program.nodes.size();) {
      const auto run_of = [&](int branch) {
        const auto begin = at;
        while (at < program.nodes.size() && program.nodes[at].branch == branch) ++at;
        return Nodes(std::make_move_iterator(program.nodes.begin() + static_cast<std::ptrdiff_t>(begin)),
                     std::make_move_iterator(program.nodes.begin() + static_cast<std::ptrdiff_t>(at)));
      };
      auto first = run_of(program.nodes[at].branch);
      // What the second branch needs of the first would stand between them; they share what came before.
      const bool branches = first.front().branch == 0 && at < program.nodes.size() && program.nodes[at].branch == 1;
      auto joined = branches ? take_turns(std::move(first), run_of(1)) : std::move(first);
      std::move(joined.begin(), joined.end(), std::back_inserter(nodes));
    }
    program.nodes = std::move(nodes);
  }
  return graph;
}

}  // namespace orrery::compiler
