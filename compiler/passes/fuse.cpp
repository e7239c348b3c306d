// Activations become part of what makes their input: one pass over memory less.

#include <algorithm>

#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

using cards::Attr;
using cards::Op;

Graph fuse(Graph graph) {
  std::vector<std::uint32_t> uses(graph.values.size(), 0);
  for (const auto& program : graph.programs)
    for (const auto& node : program.nodes)
      for (const auto input : node.inputs) ++uses[input];
  for (const auto& [name, value] : graph.outputs) ++uses[value];

  for (auto& program : graph.programs) {
    std::vector<std::size_t> maker(graph.values.size(), SIZE_MAX);
    std::vector<bool> gone(program.nodes.size(), false);
    for (std::size_t i = 0; i < program.nodes.size(); ++i) {
      auto& node = program.nodes[i];
      if (node.op == Op::activate && uses[node.inputs[0]] == 1 && maker[node.inputs[0]] != SIZE_MAX) {
        auto& source = program.nodes[maker[node.inputs[0]]];
        const bool can = source.op == Op::linear || source.op == Op::linear_to_slices || source.op == Op::group_norm;
        if (can && !source.attrs.contains(Attr::activation) && !graph.values[node.outputs[0]].state) {
          source.attrs[Attr::activation] = node.attrs.at(Attr::activation);
          source.outputs = node.outputs;
          source.label += "+" + node.label.substr(node.label.rfind('.') + 1);
          maker[node.outputs[0]] = maker[node.inputs[0]];
          gone[i] = true;
          continue;
        }
      }
      for (const auto output : node.outputs) maker[output] = i;
    }
    std::vector<Node> kept;
    for (std::size_t i = 0; i < program.nodes.size(); ++i)
      if (!gone[i]) kept.push_back(std::move(program.nodes[i]));
    program.nodes = std::move(kept);
  }
  return graph;
}

}  // namespace orrery::compiler
