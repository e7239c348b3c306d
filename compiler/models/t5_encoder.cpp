#include "compiler/models/t5_encoder.hpp"

namespace orrery::compiler {

using cards::Attr;
using cards::Op;
using cards::WeightForm;

Graph text_encoder_graph(const TextEncoderConfig& config, Compute compute, std::uint64_t rows, bool attention_mask,
                         std::uint32_t slice_count) {
  const auto dtype = dtype_of(compute);
  const auto inner = config.heads * config.head_dim;
  GraphBuilder builder("text_encoder", slice_count);
  builder.begin_program("forward");
  const auto ids = builder.input("input_ids", DType::i32, {rows});
  const auto mask = attention_mask ? builder.input("attention_mask", DType::f32, {rows}) : no_value;

  const auto matrix = [&](const std::string& tensor, std::uint64_t outputs, std::uint64_t inputs) {
    return whole_weight(tensor, WeightForm::matrix, sliced_dtype_of(compute), {outputs, inputs});
  };
  const auto norm = [&](const std::string& label, const std::string& tensor, ValueId x, DType to) {
    GraphBuilder::Extra extra;
    extra.weights = {whole_weight(tensor, WeightForm::vector, DType::f32, {config.width})};
    extra.attrs[Attr::eps] = config.eps;
    return builder.node(Op::rms_norm, label, {x}, to, std::move(extra));
  };
  const auto to_slices = [&](const std::string& label, const std::string& tensor, ValueId x, std::uint64_t outputs) {
    GraphBuilder::Extra extra;
    extra.weights = {matrix(tensor, outputs, config.width)};
    return builder.node(Op::linear_to_slices, label, {x}, dtype, std::move(extra));
  };
  const auto from_slices = [&](const std::string& label, const std::string& tensor, ValueId x, std::uint64_t inputs) {
    GraphBuilder::Extra extra;
    extra.weights = {matrix(tensor, config.width, inputs)};
    return builder.node(Op::linear_from_slices, label, {x}, DType::f32, std::move(extra));
  };

  GraphBuilder::Extra table;
  table.weights = {whole_weight("shared.weight", WeightForm::table, dtype, {config.vocabulary, config.width})};
  auto x = builder.node(Op::embedding, "embedding", {ids}, DType::f32, std::move(table));

  GraphBuilder::Extra buckets;
  buckets.weights = {whole_weight("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                                  WeightForm::table, DType::f32, {config.buckets, config.heads})};
  buckets.attrs = {{Attr::rows, static_cast<double>(rows)},
                   {Attr::buckets, static_cast<double>(config.buckets)},
                   {Attr::max_distance, static_cast<double>(config.max_distance)},
                   {Attr::heads, static_cast<double>(config.heads / slice_count)}};
  const auto bias = builder.node(Op::relative_bias, "relative_bias", {}, DType::f32, std::move(buckets));

  for (std::uint64_t block = 0; block < config.layers; ++block) {
    const auto name = "block" + std::to_string(block);
    const auto layer = "encoder.block." + std::to_string(block) + ".layer.";
    auto n = norm(name + ".attn.norm", layer + "0.layer_norm.weight", x, dtype);
    std::vector<ValueId> operands;
    for (const char* which : {"q", "k", "v"})
      operands.push_back(to_slices(name + ".attn." + which, layer + "0.SelfAttention." + which + ".weight", n, inner));
    operands.push_back(bias);
    if (attention_mask) operands.push_back(mask);
    GraphBuilder::Extra attention;
    attention.attrs = {{Attr::head_dim, static_cast<double>(config.head_dim)},
                       {Attr::scale, 1},
                       {Attr::zero_keys, 0},
                       {Attr::has_bias, 1},
                       {Attr::has_mask, attention_mask}};
    const auto o = builder.node(Op::attention, name + ".attn.scores", std::move(operands), dtype, std::move(attention));
    const auto y = from_slices(name + ".attn.o", layer + "0.SelfAttention.o.weight", o, inner);
    x = builder.node(Op::add, name + ".attn.residual", {x, y}, DType::f32);

    n = norm(name + ".ff.norm", layer + "1.layer_norm.weight", x, dtype);
    const auto up = to_slices(name + ".ff.wi", layer + "1.DenseReluDense.wi.weight", n, config.feed_forward);
    GraphBuilder::Extra relu;
    relu.attrs[Attr::activation] = static_cast<double>(cards::Activation::relu);
    const auto active = builder.node(Op::activate, name + ".ff.relu", {up}, dtype, std::move(relu));
    const auto down = from_slices(name + ".ff.wo", layer + "1.DenseReluDense.wo.weight", active, config.feed_forward);
    x = builder.node(Op::add, name + ".ff.residual", {x, down}, DType::f32);
  }
  builder.name_output("last_hidden_state", norm("final_norm", "encoder.final_layer_norm.weight", x, DType::f32));
  return std::move(builder).finish();
}

}  // namespace orrery::compiler
