#include "compiler/models/cosmos_transformer.hpp"

#include <cmath>

namespace orrery::compiler {

using cards::Activation;
using cards::Attr;
using cards::Op;
using cards::WeightForm;

namespace {

struct Modulation {
  ValueId shift = no_value, scale = no_value, gate = no_value;
};
struct KeysValues {
  ValueId keys = no_value, values = no_value;
};

class TransformerFrontEnd {
public:
  TransformerFrontEnd(const TransformerConfig& config, Compute compute, std::uint64_t frames, std::uint64_t height,
                      std::uint64_t width, std::optional<double> fps, std::uint32_t slice_count)
      : config_(config),
        dtype_(dtype_of(compute)),
        sliced_dtype_(sliced_dtype_of(compute)),
        latent_{frames, height, width},
        grid_{frames / config.patch[0], height / config.patch[1], width / config.patch[2]},
        fps_(fps),
        slice_count_(slice_count),
        builder_("transformer", slice_count) {}

  GraphBuilder& builder() { return builder_; }
  std::uint64_t tokens() const { return grid_[0] * grid_[1] * grid_[2]; }
  Shape latent_shape(std::uint64_t channels) const { return {channels, latent_[0], latent_[1], latent_[2]}; }

  /// Rotary tables and learnable positions: the same at every step.
  void tables() {
    const auto half = config_.head_dim / 2;
    cos_ = builder_.state("rope.cos", DType::f32, {tokens(), half});
    sin_ = builder_.state("rope.sin", DType::f32, {tokens(), half});
    Node rope;
    rope.op = Op::rope_table;
    rope.label = "rope";
    rope.outputs = {cos_, sin_};
    rope.attrs = grid_attrs();
    rope.attrs[Attr::head_dim] = number(config_.head_dim);
    rope.attrs[Attr::scale_t] = config_.rope_scale[0];
    rope.attrs[Attr::scale_h] = config_.rope_scale[1];
    rope.attrs[Attr::scale_w] = config_.rope_scale[2];
    rope.attrs[Attr::fps] = fps_.value_or(0);
    builder_.raw_node(std::move(rope));
    if (!config_.learnable_positions) return;
    positions_ = builder_.state("positions", DType::f32, {tokens(), config_.width()});
    GraphBuilder::Extra extra;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const char* names[] = {"pos_emb_t", "pos_emb_h", "pos_emb_w"};
      extra.weights.push_back(whole_weight(std::string("learnable_pos_embed.") + names[axis], WeightForm::table,
                                           DType::f32,
                                           {config_.max_size[axis] / config_.patch[axis], config_.width()}));
    }
    extra.attrs = grid_attrs();
    extra.shape = builder_.shape_of(positions_);
    extra.into = positions_;
    builder_.node(Op::learnable_positions, "positions", {}, DType::f32, std::move(extra));
  }

  /// Keys and values of the text for every block, kept as state.
  std::vector<KeysValues> text_state(ValueId text, const std::string& suffix) {
    std::vector<KeysValues> all;
    for (std::uint64_t block = 0; block < config_.layers; ++block) {
      const auto at = block_name(block) + ".attn2.";
      const Shape shape = {slice_count_, builder_.shape_of(text)[0], config_.width() / slice_count_};
      KeysValues kv;
      kv.keys = builder_.state(at + "k" + suffix, dtype_, shape);
      kv.values = builder_.state(at + "v" + suffix, dtype_, shape);
      const auto project = [&](const char* which, ValueId into) {
        GraphBuilder::Extra extra;
        extra.weights = {matrix(tensor_of(block) + "attn2.to_" + which + ".weight", sliced_dtype_, config_.width(), config_.text_width)};
        extra.into = into;
        builder_.node(Op::linear_to_slices, at + which + suffix, {text}, dtype_, std::move(extra));
      };
      project("k", kv.keys);
      head_norm(at + "k_norm" + suffix, tensor_of(block) + "attn2.norm_k.weight", kv.keys, false, true);
      project("v", kv.values);
      all.push_back(kv);
    }
    return all;
  }

  /// Token rows of the network input.
  ValueId tokens_of(ValueId latents, ValueId condition, ValueId padding) {
    std::vector<ValueId> inputs = {latents};
    if (condition != no_value) inputs.push_back(condition);
    if (padding != no_value) inputs.push_back(padding);
    GraphBuilder::Extra extra;
    extra.attrs = {{Attr::patch_t, number(config_.patch[0])}, {Attr::patch_h, number(config_.patch[1])},
                   {Attr::patch_w, number(config_.patch[2])}, {Attr::has_condition, condition != no_value},
                   {Attr::has_padding, padding != no_value},  {Attr::begin, 0}};
    extra.shape = Shape{tokens(), config_.token_inputs()};
    return builder_.node(Op::patchify, "patchify", std::move(inputs), dtype_, std::move(extra));
  }

  /// Time embedding and the shift, scale and gate of every norm.
  void time_vectors() {
    const auto D = config_.width();
    GraphBuilder::Extra extra;
    extra.shape = Shape{1, D};
    const auto sinusoid = builder_.node(Op::timestep_embedding, "time.sinusoid", {}, DType::f32, std::move(extra));
    const auto hidden = linear("time.linear_1", "time_embed.t_embedder.linear_1.weight", sinusoid, D, DType::f32);
    const auto active = activate("time.silu", hidden, Activation::silu);
    const auto bias = linear("time.linear_2", "time_embed.t_embedder.linear_2.weight", active, 3 * D, DType::f32);
    extra = {};
    extra.weights = {whole_weight("time_embed.norm.weight", WeightForm::vector, DType::f32, {D})};
    extra.attrs[Attr::eps] = 1e-6;
    const auto embedded = builder_.node(Op::rms_norm, "time.norm", {sinusoid}, DType::f32, std::move(extra));
    const auto condition = activate("time.condition", embedded, Activation::silu);
    for (std::uint64_t block = 0; block < config_.layers; ++block)
      for (int norm = 1; norm <= 3; ++norm)
        modulations_.push_back(modulation(block_name(block) + ".norm" + std::to_string(norm),
                                          tensor_of(block) + "norm" + std::to_string(norm), condition, bias, true));
    const auto bias_out = columns("norm_out.bias", bias, 0, 2 * D);
    norm_out_ = modulation("norm_out", "norm_out", condition, bias_out, false);
  }

  /// The blocks and the output projection of one branch: rows of the network output.
  ValueId branch(ValueId token_rows, const std::vector<KeysValues>& text, std::uint64_t zero_keys, ValueId key_mask,
                 const std::string& suffix) {
    const auto D = config_.width();
    auto h = linear("patch_embed" + suffix, "patch_embed.proj.weight", token_rows, D, DType::f32);
    for (std::uint64_t block = 0; block < config_.layers; ++block) {
      const auto name = block_name(block) + suffix;
      const auto tensors = tensor_of(block);
      if (positions_ != no_value) h = builder_.node(Op::add, name + ".positions", {h, positions_}, DType::f32);
      h = part(name + ".attn1", h, modulations_[3 * block], [&](ValueId n) {
        const auto q =
            heads(name + ".attn1.q", tensors + "attn1.to_q.weight", tensors + "attn1.norm_q.weight", n, true);
        const auto k =
            heads(name + ".attn1.k", tensors + "attn1.to_k.weight", tensors + "attn1.norm_k.weight", n, true);
        const auto v = to_slices(name + ".attn1.v", tensors + "attn1.to_v.weight", n, D);
        const auto o = attention(name + ".attn1.scores", {q, k, v}, 0, no_value);
        return from_slices(name + ".attn1.out", tensors + "attn1.to_out.0.weight", o, D);
      });
      h = part(name + ".attn2", h, modulations_[3 * block + 1], [&](ValueId n) {
        const auto q =
            heads(name + ".attn2.q", tensors + "attn2.to_q.weight", tensors + "attn2.norm_q.weight", n, false);
        const auto o =
            attention(name + ".attn2.scores", {q, text[block].keys, text[block].values}, zero_keys, key_mask);
        return from_slices(name + ".attn2.out", tensors + "attn2.to_out.0.weight", o, D);
      });
      h = part(name + ".ff", h, modulations_[3 * block + 2], [&](ValueId n) {
        const auto up = to_slices(name + ".ff.up", tensors + "ff.net.0.proj.weight", n, config_.feed_forward());
        const auto active = activate(name + ".ff.gelu", up, Activation::gelu);
        return from_slices(name + ".ff.down", tensors + "ff.net.2.weight", active, D);
      });
    }
    const auto n = norm("norm_out" + suffix, h, norm_out_);
    return linear("proj_out" + suffix, "proj_out.weight", n, config_.token_outputs(), DType::f32);
  }

  ValueId unpatchify(const std::string& label, ValueId rows) {
    GraphBuilder::Extra extra;
    extra.attrs = {{Attr::patch_t, number(config_.patch[0])},
                   {Attr::patch_h, number(config_.patch[1])},
                   {Attr::patch_w, number(config_.patch[2])}};
    extra.shape = latent_shape(config_.out_channels);
    return builder_.node(Op::unpatchify, label, {rows}, DType::f32, std::move(extra));
  }

  ValueId padding_state() {
    if (!config_.padding_mask) return no_value;
    const auto padding = builder_.state("padding_mask", DType::f32, {latent_[1], latent_[2]});
    builder_.name_input("padding_mask", padding);
    return padding;
  }

private:
  static double number(std::uint64_t value) { return static_cast<double>(value); }
  static std::string block_name(std::uint64_t block) { return "block" + std::to_string(block); }
  static std::string tensor_of(std::uint64_t block) { return "transformer_blocks." + std::to_string(block) + "."; }

  std::map<Attr, double> grid_attrs() const {
    return {{Attr::begin, 0},
            {Attr::frames, number(grid_[0])},
            {Attr::height, number(grid_[1])},
            {Attr::width, number(grid_[2])}};
  }
  static cards::WeightSpec matrix(const std::string& tensor, DType dtype, std::uint64_t rows, std::uint64_t columns) {
    return whole_weight(tensor, WeightForm::matrix, dtype, {rows, columns});
  }
  ValueId linear(const std::string& label, const std::string& tensor, ValueId x, std::uint64_t outputs, DType dtype) {
    GraphBuilder::Extra extra;
    extra.weights = {matrix(tensor, dtype_, outputs, builder_.shape_of(x).back())};
    return builder_.node(Op::linear, label, {x}, dtype, std::move(extra));
  }
  ValueId activate(const std::string& label, ValueId x, Activation activation) {
    GraphBuilder::Extra extra;
    extra.attrs[Attr::activation] = static_cast<double>(activation);
    return builder_.node(Op::activate, label, {x}, builder_.dtype_of(x), std::move(extra));
  }
  ValueId columns(const std::string& label, ValueId x, std::uint64_t begin, std::uint64_t count) {
    GraphBuilder::Extra extra;
    extra.attrs[Attr::begin] = number(begin);
    extra.shape = Shape{builder_.shape_of(x)[0], count};
    return builder_.node(Op::slice_columns, label, {x}, builder_.dtype_of(x), std::move(extra));
  }
  Modulation modulation(const std::string& name, const std::string& tensor, ValueId condition, ValueId bias,
                        bool gated) {
    const auto D = config_.width();
    const auto low =
        linear(name + ".linear_1", tensor + ".linear_1.weight", condition, config_.adaln_width, DType::f32);
    const auto high = linear(name + ".linear_2", tensor + ".linear_2.weight", low, gated ? 3 * D : 2 * D, DType::f32);
    const auto sum = builder_.node(Op::add, name + ".modulation", {high, bias}, DType::f32);
    Modulation result;
    result.shift = columns(name + ".shift", sum, 0, D);
    result.scale = columns(name + ".scale", sum, D, D);
    if (gated) result.gate = columns(name + ".gate", sum, 2 * D, D);
    return result;
  }
  ValueId norm(const std::string& label, ValueId h, const Modulation& modulation) {
    GraphBuilder::Extra extra;
    extra.attrs[Attr::eps] = 1e-6;
    return builder_.node(Op::layer_norm_modulate, label, {h, modulation.shift, modulation.scale}, dtype_,
                         std::move(extra));
  }
  /// h + gate * f(norm(h)).
  template <class F>
  ValueId part(const std::string& name, ValueId h, const Modulation& modulation, F f) {
    const auto n = norm(name + ".norm", h, modulation);
    const auto y = f(n);
    return builder_.node(Op::gate_add, name + ".residual", {h, modulation.gate, y}, DType::f32);
  }
  ValueId to_slices(const std::string& label, const std::string& tensor, ValueId x, std::uint64_t outputs) {
    GraphBuilder::Extra extra;
    extra.weights = {matrix(tensor, sliced_dtype_, outputs, builder_.shape_of(x).back())};
    return builder_.node(Op::linear_to_slices, label, {x}, dtype_, std::move(extra));
  }
  ValueId from_slices(const std::string& label, const std::string& tensor, ValueId x, std::uint64_t outputs) {
    const auto& shape = builder_.shape_of(x);
    GraphBuilder::Extra extra;
    extra.weights = {matrix(tensor, sliced_dtype_, outputs, shape[0] * shape[2])};
    return builder_.node(Op::linear_from_slices, label, {x}, DType::f32, std::move(extra));
  }
  ValueId head_norm(const std::string& label, const std::string& tensor, ValueId x, bool rope, bool in_state) {
    GraphBuilder::Extra extra;
    extra.weights = {whole_weight(tensor, WeightForm::vector, DType::f32, {config_.head_dim})};
    extra.attrs = {{Attr::eps, 1e-5}, {Attr::head_dim, number(config_.head_dim)}};
    if (in_state) extra.into = x;
    std::vector<ValueId> inputs = {x};
    if (rope) inputs.insert(inputs.end(), {cos_, sin_});
    return builder_.node(Op::head_norm_rope, label, std::move(inputs), dtype_, std::move(extra));
  }
  ValueId heads(const std::string& label, const std::string& tensor, const std::string& norm_tensor, ValueId n,
                bool rope) {
    const auto x = to_slices(label, tensor, n, config_.width());
    return head_norm(label + "_norm", norm_tensor, x, rope, false);
  }
  ValueId attention(const std::string& label, std::vector<ValueId> inputs, std::uint64_t zero_keys, ValueId key_mask) {
    GraphBuilder::Extra extra;
    extra.attrs = {{Attr::head_dim, number(config_.head_dim)},
                   {Attr::scale, 1.0 / std::sqrt(number(config_.head_dim))},
                   {Attr::zero_keys, number(zero_keys)},
                   {Attr::has_bias, 0},
                   {Attr::has_mask, key_mask != no_value}};
    if (key_mask != no_value) inputs.push_back(key_mask);
    return builder_.node(Op::attention, label, std::move(inputs), dtype_, std::move(extra));
  }

  const TransformerConfig& config_;
  const DType dtype_, sliced_dtype_;
  const std::array<std::uint64_t, 3> latent_, grid_;
  const std::optional<double> fps_;
  const std::uint64_t slice_count_;
  GraphBuilder builder_;
  std::vector<Modulation> modulations_;
  Modulation norm_out_;
  ValueId cos_ = no_value, sin_ = no_value, positions_ = no_value;
};

}  // namespace

Graph denoiser_graph(const TransformerConfig& config, Compute compute, const DenoiserShape& shape,
                     std::uint32_t slice_count) {
  TransformerFrontEnd model(config, compute, shape.frames, shape.height, shape.width, shape.fps, slice_count);
  auto& builder = model.builder();
  const int branches = shape.guidance ? 2 : 1;
  const std::uint64_t rows[] = {shape.prompt_rows, shape.negative_rows};
  const char* suffixes[] = {".prompt", ".negative"};

  const auto latents = builder.state("latents", DType::f32, model.latent_shape(config.out_channels));
  builder.name_input("noise", latents);
  builder.name_output("latents", latents);
  const auto padding = model.padding_state();

  builder.begin_program("prepare");
  GraphBuilder::Extra in_latents;
  in_latents.into = latents;
  builder.node(Op::scale_noise, "latents", {latents}, DType::f32, in_latents);
  model.tables();
  std::vector<std::vector<KeysValues>> text;
  for (int branch = 0; branch < branches; ++branch) {
    builder.set_branch(branch);
    const auto input =
        builder.input(branch == 0 ? "text_prompt" : "text_negative", DType::f32, {rows[branch], config.text_width});
    text.push_back(model.text_state(input, suffixes[branch]));
  }

  builder.begin_program("step");
  const auto token_rows = model.tokens_of(latents, no_value, padding);
  model.time_vectors();
  std::vector<ValueId> outputs;
  for (int branch = 0; branch < branches; ++branch) {
    builder.set_branch(branch);
    outputs.push_back(model.branch(token_rows, text[static_cast<std::size_t>(branch)], shape.padded_rows - rows[branch],
                                   no_value, suffixes[branch]));
  }
  builder.set_branch(-1);
  std::vector<ValueId> euler = {latents};
  for (int branch = 0; branch < branches; ++branch)
    euler.push_back(
        model.unpatchify(std::string("unpatchify") + suffixes[branch], outputs[static_cast<std::size_t>(branch)]));
  builder.node(Op::euler_step, "euler_step", std::move(euler), DType::f32, in_latents);
  return std::move(builder).finish();
}

Graph transformer_graph(const TransformerConfig& config, Compute compute, const TransformerShape& shape,
                        std::uint32_t slice_count) {
  TransformerFrontEnd model(config, compute, shape.frames, shape.height, shape.width, shape.fps, slice_count);
  auto& builder = model.builder();
  builder.begin_program("forward");
  const auto padding = model.padding_state();
  const auto latents = builder.input("hidden_states", DType::f32,
                                     model.latent_shape(config.in_channels - (shape.condition_mask ? 1 : 0)));
  const auto condition =
      shape.condition_mask ? builder.input("condition_mask", DType::f32, model.latent_shape(1)) : no_value;
  const auto text = builder.input("encoder_hidden_states", DType::f32, {shape.text_rows, config.text_width});
  const auto key_mask =
      shape.attention_mask ? builder.input("attention_mask", DType::f32, {shape.text_rows}) : no_value;
  model.tables();
  const auto keys_values = model.text_state(text, "");
  const auto token_rows = model.tokens_of(latents, condition, padding);
  model.time_vectors();
  const auto rows = model.branch(token_rows, keys_values, 0, key_mask, "");
  builder.name_output("sample", model.unpatchify("sample", rows));
  return std::move(builder).finish();
}

}  // namespace orrery::compiler
