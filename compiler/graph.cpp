#include "compiler/graph.hpp"

#include <cstdio>

#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

std::string Graph::text() const {
  std::string text = component + ": " + std::to_string(slice_count) + " slices\n";
  const auto value_text = [&](ValueId id) {
    const auto& value = values[id];
    return "%" + std::to_string(id) + " " + std::string(orrery::name_of(value.dtype)) + text_of(value.shape) +
           (value.state ? " state" : "");
  };
  for (const auto& [name, id] : inputs) text += "input " + name + " = " + value_text(id) + "\n";
  for (const auto& [name, id] : outputs) text += "output " + name + " = " + value_text(id) + "\n";
  for (const auto& program : programs) {
    text += "program " + program.name + "\n";
    for (const auto& node : program.nodes) {
      text += "  ";
      for (std::size_t i = 0; i < node.outputs.size(); ++i) text += (i > 0 ? ", " : "") + value_text(node.outputs[i]);
      text += " = " + std::string(cards::name_of(node.op)) + "(";
      for (std::size_t i = 0; i < node.inputs.size(); ++i)
        text += (i > 0 ? ", %" : "%") + std::to_string(node.inputs[i]);
      text += ")";
      for (const auto& [attr, number] : node.attrs) {
        char number_text[32];
        std::snprintf(number_text, sizeof number_text, "%.9g", number);
        text += " " + std::string(cards::name_of(attr)) + "=" + number_text;
      }
      if (!node.weights.empty()) {
        const auto& first = node.weights.front();
        text += " w " + first.tensor;
        if (node.weights.size() > 1 && node.weights[1].tensor == first.tensor)
          text += " in " + std::to_string(node.weights.size()) + " parts";
      }
      if (!node.slices.empty()) {
        text += " slices";
        for (const auto slice : node.slices) text += " " + std::to_string(slice);
      }
      if (node.branch >= 0) text += " branch " + std::to_string(node.branch);
      text += "  # " + node.label + "\n";
    }
  }
  return text;
}

cards::WeightSpec whole_weight(std::string tensor, cards::WeightForm form, DType dtype, Shape shape) {
  cards::WeightSpec weight;
  weight.tensor = std::move(tensor);
  weight.form = form;
  weight.dtype = dtype;
  weight.row_end = shape.empty() ? 1 : shape[0];
  weight.column_end = weight.row_end == 0 ? 0 : element_count(shape) / weight.row_end;
  weight.shape = std::move(shape);
  return weight;
}

GraphBuilder::GraphBuilder(std::string component, std::uint32_t slice_count) {
  graph_.component = std::move(component);
  graph_.slice_count = slice_count;
}

void GraphBuilder::begin_program(std::string name) {
  graph_.programs.push_back({std::move(name), {}});
  branch_ = -1;
}

ValueId GraphBuilder::new_value(const std::string& name, DType dtype, Shape shape) {
  Value value;
  value.name = name;
  value.dtype = dtype;
  value.shape = std::move(shape);
  graph_.values.push_back(std::move(value));
  return static_cast<ValueId>(graph_.values.size() - 1);
}

ValueId GraphBuilder::input(const std::string& name, DType dtype, Shape shape) {
  const auto id = new_value(name, dtype, std::move(shape));
  graph_.values[id].input = true;
  graph_.inputs[name] = id;
  return id;
}

ValueId GraphBuilder::state(const std::string& name, DType dtype, Shape shape) {
  const auto id = new_value(name, dtype, std::move(shape));
  graph_.values[id].state = true;
  return id;
}

void GraphBuilder::name_input(const std::string& name, ValueId value) { graph_.inputs[name] = value; }
void GraphBuilder::name_output(const std::string& name, ValueId value) { graph_.outputs[name] = value; }

ValueId GraphBuilder::node(cards::Op op, const std::string& label, std::vector<ValueId> inputs, DType dtype,
                           Extra extra) {
  Node node;
  node.op = op;
  node.label = label;
  node.inputs = std::move(inputs);
  node.weights = std::move(extra.weights);
  node.attrs = std::move(extra.attrs);
  if (op == cards::Op::linear_to_slices || op == cards::Op::linear_from_slices || op == cards::Op::relative_bias)
    node.attrs[cards::Attr::slice_count] = graph_.slice_count;
  if (op == cards::Op::linear && node.weights.size() == 2) node.attrs[cards::Attr::has_bias] = 1;
  std::optional<Shape> shape = std::move(extra.shape);
  if (!shape) {
    std::vector<Shape> shapes;
    for (const auto input : node.inputs) shapes.push_back(shape_of(input));
    shape = inferred_shape(op, shapes, node.weights, node.attrs);
  }
  ORRERY_CHECK(shape.has_value());
  const auto output = extra.into ? *extra.into : new_value(label, dtype, std::move(*shape));
  node.outputs = {output};
  node.branch = branch_;
  ORRERY_CHECK(!graph_.programs.empty());
  graph_.programs.back().nodes.push_back(std::move(node));
  return output;
}

void GraphBuilder::raw_node(Node node) {
  node.branch = branch_;
  graph_.programs.back().nodes.push_back(std::move(node));
}

}  // namespace orrery::compiler
