// Graph: one component of a model as operations on values, before and after it is cut to one rank.
//
// Front ends (models/) build the logical graph: the whole model on one imagined card that owns every slice. The
// passes (passes/) turn it, step by step, into the graph of one rank and then into a cards::ProgramSet:
//
//   models/*.cpp ──▶ Graph ── fuse ── split(Layout) ── interleave ──▶ Graph of one rank ── plan ──▶ ProgramSet
//
// Operations are those of cards/program.hpp; its table says what each takes and gives. In the logical graph a
// sliced tensor has all V slices ([V][rows][w]) and linear_to_slices / linear_from_slices name the whole matrix
// once; there are no exchange operations.
//
// Values are of three kinds:
//   activation  written by one node, lives inside one program (static single assignment);
//   input       an activation that the host writes before the program runs;
//   state       lives as long as the request; may be written by any program, also in place.
//
// An operation that the table calls "in place" takes a value as its first input and gives a new one; the memory
// plan puts both into the same slot. With a state value the node names the same value as input and output.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cards/program.hpp"

namespace orrery::compiler {

using ValueId = std::uint32_t;
constexpr ValueId no_value = UINT32_MAX;

struct Value {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  bool state = false;
  bool input = false;
};

struct Node {
  cards::Op op = cards::Op::add;
  std::string label;  // "block3.attn1.q"
  std::vector<ValueId> inputs, outputs;
  std::vector<cards::WeightSpec> weights;
  std::map<cards::Attr, double> attrs;
  std::vector<std::uint32_t> slices;  // Of one rank; empty in the logical graph.
  /// Guidance branch (0 prompt, 1 negative prompt) that this node belongs to; -1: all groups run it.
  int branch = -1;
};

struct GraphProgram {
  std::string name;
  std::vector<Node> nodes;
};

/// Threads: one. Built once, then handed from pass to pass by value.
struct Graph {
  std::string component;
  std::uint32_t slice_count = 1;
  std::vector<Value> values;
  std::vector<GraphProgram> programs;
  std::map<std::string, ValueId> inputs, outputs;  // Public names.

  /// One line a node; stable.
  std::string text() const;
};

/// The whole of a tensor of the model folder.
cards::WeightSpec whole_weight(std::string tensor, cards::WeightForm form, DType dtype, Shape shape);

/// Writes a Graph node after node. Shapes are inferred (passes/shapes.cpp); where an operation's output does not
/// follow from its inputs (patchify, rope_table, learnable_positions, copy_rows, slice_columns, state results)
/// the front end says it. Disagreement is our own bug and ends the process.
class GraphBuilder {
public:
  GraphBuilder(std::string component, std::uint32_t slice_count);

  /// Nodes added from now on belong to this program.
  void begin_program(std::string name);
  /// Nodes added from now on belong to this guidance branch (-1: none).
  void set_branch(int branch) { branch_ = branch; }

  /// An input of the current program that the host writes; `name` is public.
  ValueId input(const std::string& name, DType dtype, Shape shape);
  /// A state value, not public by itself.
  ValueId state(const std::string& name, DType dtype, Shape shape);
  /// Gives a value a public name. A state value may be both input and output.
  void name_input(const std::string& name, ValueId value);
  void name_output(const std::string& name, ValueId value);

  struct Extra {
    std::vector<cards::WeightSpec> weights = {};
    std::map<cards::Attr, double> attrs = {};
    std::optional<Shape> shape = {};        // Of the output, where it is not inferred.
    std::optional<ValueId> into = {};       // A state value that receives the output.
  };
  /// Adds a node with one output; the value is named like the label.
  ValueId node(cards::Op op, const std::string& label, std::vector<ValueId> inputs, DType dtype, Extra extra);
  ValueId node(cards::Op op, const std::string& label, std::vector<ValueId> inputs, DType dtype) {
    return node(op, label, std::move(inputs), dtype, Extra{});
  }
  /// Adds a node with the outputs that stand in it already (rope_table).
  void raw_node(Node node);

  const Shape& shape_of(ValueId value) const { return graph_.values[value].shape; }
  DType dtype_of(ValueId value) const { return graph_.values[value].dtype; }
  Graph finish() && { return std::move(graph_); }

private:
  ValueId new_value(const std::string& name, DType dtype, Shape shape);
  Graph graph_;
  int branch_ = -1;
};

}  // namespace orrery::compiler
