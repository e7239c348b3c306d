// Shapes as they follow from the table of operations (cards/program.hpp).

#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

using cards::Attr;
using cards::Op;

std::optional<Shape> inferred_shape(Op op, const std::vector<Shape>& inputs,
                                    const std::vector<cards::WeightSpec>& weights,
                                    const std::map<Attr, double>& attrs) {
  const auto number = [&](Attr attr, std::uint64_t otherwise = 0) {
    const auto found = attrs.find(attr);
    return found == attrs.end() ? otherwise : static_cast<std::uint64_t>(found->second);
  };
  switch (op) {
    case Op::linear: {
      auto shape = inputs[0];
      shape.back() = weights[0].rows();
      return shape;
    }
    case Op::linear_to_slices: {
      const auto slices = number(Attr::slice_count, 1);
      return Shape{slices, inputs[0][0], weights[0].rows() / slices};
    }
    case Op::linear_from_slices: return Shape{1, inputs[0][1], weights[0].rows()};
    case Op::attention:
    case Op::head_norm_rope:
    case Op::layer_norm_modulate:
    case Op::rms_norm:
    case Op::group_norm:
    case Op::gate_add:
    case Op::add:
    case Op::activate:
    case Op::scale_noise:
    case Op::euler_step:
    case Op::to_decoder:
    case Op::temporal_attention: return inputs[0];
    case Op::relative_bias:
      return Shape{number(Attr::slice_count, 1) * number(Attr::heads), 2 * number(Attr::rows) - 1};
    case Op::embedding: return Shape{inputs[0][0], weights[0].columns()};
    case Op::channels_last: return Shape{inputs[0][1], inputs[0][2], inputs[0][3], inputs[0][0]};
    case Op::channels_first: return Shape{inputs[0][3], inputs[0][0], inputs[0][1], inputs[0][2]};
    case Op::conv_spatial: {
      const auto stride = number(Attr::stride, 1);
      const auto& x = inputs[0];
      // Stride 2 sees one more row and column (zero): floor((H + 1 - 3) / 2) + 1.
      const auto extent = [&](std::uint64_t n) { return stride == 1 ? n : (n + 1 - 3) / 2 + 1; };
      return Shape{x[0], extent(x[1]), extent(x[2]), weights[0].rows()};
    }
    case Op::conv_temporal: {
      const auto& x = inputs[0];
      const auto frames = number(Attr::stride, 1) == 1 ? x[0] : (x[0] - 1) / 2 + 1;
      return Shape{frames, x[1], x[2], weights[0].rows()};
    }
    case Op::avg_pool_spatial: return Shape{inputs[0][0], (inputs[0][1] + 1) / 2, (inputs[0][2] + 1) / 2, inputs[0][3]};
    case Op::avg_pool_temporal: return Shape{(inputs[0][0] + 1) / 2, inputs[0][1], inputs[0][2], inputs[0][3]};
    case Op::repeat_temporal: {
      auto shape = inputs[0];
      shape[0] = 2 * shape[0] - number(Attr::drop);
      return shape;
    }
    case Op::upsample_spatial: return Shape{inputs[0][0], 2 * inputs[0][1], 2 * inputs[0][2], inputs[0][3]};
    case Op::patch_video: {
      const auto p = number(Attr::patch, 1);
      const auto& x = inputs[0];
      return Shape{(x[1] + number(Attr::repeat_first)) / p, x[2] / p, x[3] / p, x[0] * p * p * p};
    }
    case Op::unpatch_video: {
      const auto p = number(Attr::patch, 1);
      const auto& x = inputs[0];
      return Shape{x[3] / (p * p * p), x[0] * p - number(Attr::drop), x[1] * p, x[2] * p};
    }
    case Op::frames_u8: return Shape{inputs[0][1], inputs[0][2], inputs[0][3], inputs[0][0]};
    default: return std::nullopt;
  }
}

std::string shape_problem(const Graph& graph) {
  for (const auto& program : graph.programs)
    for (const auto& node : program.nodes) {
      std::vector<Shape> inputs;
      for (const auto input : node.inputs) inputs.push_back(graph.values[input].shape);
      const auto shape = inferred_shape(node.op, inputs, node.weights, node.attrs);
      const auto& has = graph.values[node.outputs[0]].shape;
      if (shape && element_count(*shape) != element_count(has))
        return program.name + ", " + std::string(name_of(node.op)) + " " + node.label + " gives " + text_of(*shape) +
               ", its value is " + text_of(has);
    }
  return {};
}

InPlace in_place_of(Op op) {
  switch (op) {
    case Op::head_norm_rope:
    case Op::gate_add:
    case Op::scale_noise:
    case Op::euler_step: return InPlace::always;
    case Op::add: return InPlace::allowed;
    default: return InPlace::never;
  }
}

bool is_exchange(Op op) {
  return op == Op::all_gather_rows || op == Op::reduce_scatter || op == Op::to_heads || op == Op::to_tokens;
}

bool keeps_state(Op op, std::size_t input) {
  return (op == Op::conv_temporal && input == 1) || (op == Op::temporal_attention && input >= 3);
}

}  // namespace orrery::compiler
