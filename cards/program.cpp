#include "cards/program.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <optional>

#include "base/slice_tree.hpp"

namespace orrery::cards {

std::string_view name_of(Op op) {
  switch (op) {
    case Op::linear: return "linear";
    case Op::linear_to_slices: return "linear_to_slices";
    case Op::linear_from_slices: return "linear_from_slices";
    case Op::attention: return "attention";
    case Op::head_norm_rope: return "head_norm_rope";
    case Op::relative_bias: return "relative_bias";
    case Op::layer_norm_modulate: return "layer_norm_modulate";
    case Op::rms_norm: return "rms_norm";
    case Op::group_norm: return "group_norm";
    case Op::gate_add: return "gate_add";
    case Op::add: return "add";
    case Op::activate: return "activate";
    case Op::slice_columns: return "slice_columns";
    case Op::copy_rows: return "copy_rows";
    case Op::embedding: return "embedding";
    case Op::timestep_embedding: return "timestep_embedding";
    case Op::rope_table: return "rope_table";
    case Op::learnable_positions: return "learnable_positions";
    case Op::patchify: return "patchify";
    case Op::unpatchify: return "unpatchify";
    case Op::scale_noise: return "scale_noise";
    case Op::euler_step: return "euler_step";
    case Op::to_decoder: return "to_decoder";
    case Op::take_frame: return "take_frame";
    case Op::channels_last: return "channels_last";
    case Op::channels_first: return "channels_first";
    case Op::conv_spatial: return "conv_spatial";
    case Op::conv_temporal: return "conv_temporal";
    case Op::temporal_attention: return "temporal_attention";
    case Op::avg_pool_spatial: return "avg_pool_spatial";
    case Op::avg_pool_temporal: return "avg_pool_temporal";
    case Op::repeat_temporal: return "repeat_temporal";
    case Op::upsample_spatial: return "upsample_spatial";
    case Op::patch_video: return "patch_video";
    case Op::unpatch_video: return "unpatch_video";
    case Op::frames_u8: return "frames_u8";
    case Op::all_gather_rows: return "all_gather_rows";
    case Op::reduce_scatter: return "reduce_scatter";
    case Op::to_heads: return "to_heads";
    case Op::to_tokens: return "to_tokens";
  }
  return "unknown";
}

std::string_view name_of(Attr attr) {
  switch (attr) {
    case Attr::activation: return "activation";
    case Attr::eps: return "eps";
    case Attr::scale: return "scale";
    case Attr::head_dim: return "head_dim";
    case Attr::heads: return "heads";
    case Attr::zero_keys: return "zero_keys";
    case Attr::slice_count: return "slice_count";
    case Attr::rows: return "rows";
    case Attr::buckets: return "buckets";
    case Attr::max_distance: return "max_distance";
    case Attr::begin: return "begin";
    case Attr::frames: return "frames";
    case Attr::height: return "height";
    case Attr::width: return "width";
    case Attr::scale_t: return "scale_t";
    case Attr::scale_h: return "scale_h";
    case Attr::scale_w: return "scale_w";
    case Attr::fps: return "fps";
    case Attr::patch_t: return "patch_t";
    case Attr::patch_h: return "patch_h";
    case Attr::patch_w: return "patch_w";
    case Attr::has_condition: return "has_condition";
    case Attr::has_padding: return "has_padding";
    case Attr::sigma_data: return "sigma_data";
    case Attr::frames_max: return "frames_max";
    case Attr::stride: return "stride";
    case Attr::first: return "first";
    case Attr::drop: return "drop";
    case Attr::patch: return "patch";
    case Attr::haar: return "haar";
    case Attr::repeat_first: return "repeat_first";
    case Attr::exchange: return "exchange";
    case Attr::source_group: return "source_group";
    case Attr::has_bias: return "has_bias";
    case Attr::has_mask: return "has_mask";
    case Attr::has_caches: return "has_caches";
  }
  return "unknown";
}

bool same_weights(const WeightSet& wanted, const WeightSet& loaded) {
  if (&wanted == &loaded) return true;
  return std::equal(wanted.weights.begin(), wanted.weights.end(), loaded.weights.begin(), loaded.weights.end(),
                    [](const WeightSpec& a, const WeightSpec& b) {
                      return a.tensor == b.tensor && a.form == b.form && a.dtype == b.dtype && a.shape == b.shape &&
                             a.row_begin == b.row_begin && a.row_end == b.row_end && a.column_begin == b.column_begin &&
                             a.column_end == b.column_end;
                    });
}

std::uint64_t WeightSet::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& weight : weights) sum += weight.bytes();
  return sum;
}

std::uint32_t ProgramSet::index_of(std::string_view program) const {
  for (std::uint32_t i = 0; i < programs.size(); ++i)
    if (programs[i].name == program) return i;
  std::fprintf(stderr, "%s has no program %.*s\n", component.c_str(), static_cast<int>(program.size()), program.data());
  ORRERY_CHECK(false);
  return 0;
}

namespace {

std::string_view name_of(Queue queue) {
  switch (queue) {
    case Queue::compute: return "compute";
    case Queue::copy_in: return "copy_in";
    case Queue::copy_out: return "copy_out";
    case Queue::exchange: return "exchange";
  }
  return "unknown";
}

std::string_view name_of(WeightForm form) {
  switch (form) {
    case WeightForm::vector: return "vector";
    case WeightForm::table: return "table";
    case WeightForm::matrix: return "matrix";
    case WeightForm::conv_spatial: return "conv_spatial";
    case WeightForm::conv_temporal: return "conv_temporal";
  }
  return "unknown";
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string weight_text(const WeightSpec& weight) {
  std::string text = weight.tensor;
  if (weight.shape.empty() || weight.rows() != weight.shape[0])
    text.append("[")
        .append(std::to_string(weight.row_begin))
        .append(":")
        .append(std::to_string(weight.row_end))
        .append("]");
  const auto all_columns =
      weight.shape.empty() ? 1 : element_count(weight.shape) / std::max<std::uint64_t>(weight.shape[0], 1);
  if (weight.columns() != all_columns)
    text.append("[:,")
        .append(std::to_string(weight.column_begin))
        .append(":")
        .append(std::to_string(weight.column_end))
        .append("]");
  return text;
}

}  // namespace

std::string ProgramSet::text() const {
  std::string text = component + ": state " + std::to_string(state_bytes) + " B, activations " +
                     std::to_string(activation_bytes) + " B, weights " +
                     std::to_string(weights ? weights->bytes() : 0) + " B\n";
  const auto slot_text = [&](SlotId id) {
    return id < slots.size() ? "%" + std::to_string(id) + " " + slots[id].name : "%" + std::to_string(id) + "?";
  };
  for (const auto& [name, id] : inputs) text += "input " + name + " = " + slot_text(id) + "\n";
  for (const auto& [name, id] : outputs) text += "output " + name + " = " + slot_text(id) + "\n";
  for (SlotId id = 0; id < slots.size(); ++id) {
    const auto& slot = slots[id];
    text += "slot %" + std::to_string(id) + " " + slot.name + " " + std::string(orrery::name_of(slot.dtype)) +
            text_of(slot.shape) + (slot.state ? " state" : "") + " @" + std::to_string(slot.offset) + "\n";
  }
  for (const auto& program : programs) {
    text += "program " + program.name + "\n";
    for (std::size_t i = 0; i < program.commands.size(); ++i) {
      const auto& command = program.commands[i];
      text += "  " + std::to_string(i) + " " + std::string(name_of(command.queue)) + " " +
              std::string(cards::name_of(command.op)) + " " + command.label + ":";
      for (const auto id : command.outputs) text += " %" + std::to_string(id);
      text += " <-";
      for (const auto id : command.inputs) text += " %" + std::to_string(id);
      if (!command.weights.empty()) {
        text += " w(";
        for (std::size_t w = 0; w < command.weights.size(); ++w) {
          if (w > 0) text += ", ";
          const auto id = command.weights[w];
          if (weights && id < weights->weights.size())
            text.append(name_of(weights->weights[id].form)).append(" ").append(weight_text(weights->weights[id]));
          else
            text.append("?").append(std::to_string(id));
        }
        text += ")";
      }
      if (!command.slices.empty()) {
        text += " slices(";
        for (std::size_t s = 0; s < command.slices.size(); ++s)
          text.append(s > 0 ? " " : "").append(std::to_string(command.slices[s]));
        text += ")";
      }
      for (const auto& [attr, value] : command.attrs)
        text += " " + std::string(cards::name_of(attr)) + "=" + number_text(value);
      if (!command.after.empty()) {
        text += " after(";
        for (std::size_t a = 0; a < command.after.size(); ++a)
          text.append(a > 0 ? " " : "").append(std::to_string(command.after[a]));
        text += ")";
      }
      if (!command.reuses.empty()) {
        text += " reuses(";
        for (std::size_t r = 0; r < command.reuses.size(); ++r)
          text.append(r > 0 ? " %" : "%").append(std::to_string(command.reuses[r]));
        text += ")";
      }
      text += "\n";
    }
  }
  return text;
}

namespace {

/// The arity and shapes that the table of operations asks for, and what a command has.
class ShapeCheck {
public:
  ShapeCheck(const ProgramSet& set, const Command& command) : set_(set), command_(command) {}

  /// Empty, or what is wrong.
  std::string problem() {
    const auto& c = command_;
    switch (c.op) {
      case Op::linear: {
        if (!arity(1, 1, 1, 1, 2)) break;
        const auto& w = weight(0);
        expect(last(in(0)) == w.columns(), "input columns", last(in(0)), w.columns());
        expect(last(out(0)) == w.rows(), "output columns", last(out(0)), w.rows());
        expect(rows(in(0)) == rows(out(0)), "output rows", rows(out(0)), rows(in(0)));
        if (c.weights.size() == 2) expect(size(weight(1)) == w.rows(), "bias length", size(weight(1)), w.rows());
        break;
      }
      case Op::linear_to_slices: {
        if (!arity(1, 1, 1, 1, 1 << 20)) break;
        rank(out(0), 3);
        if (!problem_.empty()) break;
        expect(extent(out(0), 0) == c.weights.size(), "slices", extent(out(0), 0), c.weights.size());
        expect(c.slices.size() == c.weights.size(), "slice numbers", c.slices.size(), c.weights.size());
        expect(extent(out(0), 1) == rows(in(0)), "output rows", extent(out(0), 1), rows(in(0)));
        for (std::size_t i = 0; i < c.weights.size(); ++i) {
          expect(weight(i).columns() == last(in(0)), "input columns", last(in(0)), weight(i).columns());
          expect(weight(i).rows() == extent(out(0), 2), "slice width", extent(out(0), 2), weight(i).rows());
        }
        break;
      }
      case Op::linear_from_slices: {
        if (!arity(1, 1, 1, 1, 1 << 20)) break;
        rank(in(0), 3);
        rank(out(0), 3);
        type(out(0), DType::f32);
        if (!problem_.empty()) break;
        expect(extent(in(0), 0) == c.weights.size(), "slices", extent(in(0), 0), c.weights.size());
        expect(c.slices.size() == c.weights.size(), "slice numbers", c.slices.size(), c.weights.size());
        for (const auto slice : c.slices)
          expect(slice < c.count(Attr::slice_count), "slice number", slice, c.count(Attr::slice_count));
        if (!problem_.empty()) break;
        const auto pieces = pieces_of(c.slices, static_cast<std::uint32_t>(c.count(Attr::slice_count))).size();
        expect(extent(out(0), 0) == pieces, "pieces", extent(out(0), 0), pieces);
        expect(extent(out(0), 1) == extent(in(0), 1), "output rows", extent(out(0), 1), extent(in(0), 1));
        for (std::size_t i = 0; i < c.weights.size(); ++i) {
          expect(weight(i).columns() == extent(in(0), 2), "slice width", extent(in(0), 2), weight(i).columns());
          expect(weight(i).rows() == extent(out(0), 2), "output columns", extent(out(0), 2), weight(i).rows());
        }
        break;
      }
      case Op::attention: {
        const std::size_t optional = (c.count(Attr::has_bias) ? 1U : 0U) + (c.count(Attr::has_mask) ? 1U : 0U);
        if (!arity(3 + optional, 3 + optional, 1, 0, 0)) break;
        for (std::size_t i = 0; i < 3; ++i) rank(in(i), 3);
        rank(out(0), 3);
        if (!problem_.empty()) break;
        const auto head = c.count(Attr::head_dim);
        expect(in(1).shape == in(2).shape, "values", count(in(2)), count(in(1)));
        expect(in(0).shape == out(0).shape, "output elements", count(out(0)), count(in(0)));
        expect(extent(in(0), 0) == extent(in(1), 0), "key slices", extent(in(1), 0), extent(in(0), 0));
        expect(extent(in(0), 2) == extent(in(1), 2), "key width", extent(in(1), 2), extent(in(0), 2));
        expect(head > 0 && extent(in(0), 2) % std::max<std::uint64_t>(head, 1) == 0, "slice width", extent(in(0), 2),
               head);
        if (!problem_.empty()) break;
        const auto longest = std::max(extent(in(0), 1), extent(in(1), 1));
        if (c.count(Attr::has_bias)) {
          const auto expected = extent(in(0), 0) * (extent(in(0), 2) / head) * (2 * longest - 1);
          expect(count(in(3)) == expected, "bias elements", count(in(3)), expected);
        }
        if (c.count(Attr::has_mask))
          expect(count(in(2 + optional)) == extent(in(1), 1), "mask elements", count(in(2 + optional)),
                 extent(in(1), 1));
        break;
      }
      case Op::head_norm_rope: {
        if (c.inputs.size() == 2 || !arity(1, 3, 1, 1, 1)) {
          fail("takes x, or x, cos and sin");
          break;
        }
        in_place();
        rank(in(0), 3);
        if (!problem_.empty()) break;
        const auto head = size(weight(0));
        expect(head > 0 && extent(in(0), 2) % std::max<std::uint64_t>(head, 1) == 0, "slice width", extent(in(0), 2),
               head);
        for (std::size_t i = 1; i < c.inputs.size(); ++i)
          expect(count(in(i)) == extent(in(0), 1) * (head / 2), "rotary table elements", count(in(i)),
                 extent(in(0), 1) * (head / 2));
        break;
      }
      case Op::relative_bias: {
        if (!arity(0, 0, 1, 1, 1)) break;
        const auto expected = c.slices.size() * c.count(Attr::heads) * (2 * c.count(Attr::rows) - 1);
        expect(count(out(0)) == expected, "bias elements", count(out(0)), expected);
        expect(weight(0).rows() == c.count(Attr::buckets), "buckets", weight(0).rows(), c.count(Attr::buckets));
        break;
      }
      case Op::layer_norm_modulate:
        if (!arity(3, 3, 1, 0, 0)) break;
        type(in(0), DType::f32);
        same_count(in(0), out(0));
        expect(count(in(1)) == last(in(0)), "shift length", count(in(1)), last(in(0)));
        expect(count(in(2)) == last(in(0)), "scale length", count(in(2)), last(in(0)));
        break;
      case Op::rms_norm:
        if (!arity(1, 1, 1, 1, 1)) break;
        same_count(in(0), out(0));
        expect(size(weight(0)) == last(in(0)), "weight length", size(weight(0)), last(in(0)));
        break;
      case Op::group_norm:
        if (!arity(1, 1, 1, 2, 2)) break;
        same_count(in(0), out(0));
        expect(size(weight(0)) == last(in(0)), "weight length", size(weight(0)), last(in(0)));
        expect(size(weight(1)) == last(in(0)), "bias length", size(weight(1)), last(in(0)));
        break;
      case Op::gate_add:
        if (!arity(3, 3, 1, 0, 0)) break;
        in_place();
        type(in(0), DType::f32);
        expect(count(in(1)) == last(in(0)), "gate length", count(in(1)), last(in(0)));
        expect(count(in(2)) == count(in(0)), "elements added", count(in(2)), count(in(0)));
        break;
      case Op::add:
        if (!arity(2, 2, 1, 0, 0)) break;
        same_count(in(0), in(1));
        same_count(in(0), out(0));
        break;
      case Op::activate:
      case Op::channels_last:
      case Op::channels_first:
      case Op::frames_u8:
        if (!arity(1, 1, 1, 0, 0)) break;
        same_count(in(0), out(0));
        break;
      case Op::slice_columns:
        if (!arity(1, 1, 1, 0, 0)) break;
        expect(rows(in(0)) == rows(out(0)), "output rows", rows(out(0)), rows(in(0)));
        expect(c.count(Attr::begin) + last(out(0)) <= last(in(0)), "last column", c.count(Attr::begin) + last(out(0)),
               last(in(0)));
        break;
      case Op::copy_rows:
        if (!arity(1, 1, 1, 0, 0)) break;
        expect(last(in(0)) == last(out(0)), "output columns", last(out(0)), last(in(0)));
        expect(c.count(Attr::begin) + rows(out(0)) <= rows(in(0)), "last row", c.count(Attr::begin) + rows(out(0)),
               rows(in(0)));
        break;
      case Op::embedding:
        if (!arity(1, 1, 1, 1, 1)) break;
        type(in(0), DType::i32);
        expect(count(out(0)) == count(in(0)) * weight(0).columns(), "output elements", count(out(0)),
               count(in(0)) * weight(0).columns());
        break;
      case Op::timestep_embedding: arity(0, 0, 1, 0, 0); break;
      case Op::rope_table: {
        if (!arity(0, 0, 2, 0, 0)) break;
        same_count(out(0), out(1));
        expect(last(out(0)) == c.count(Attr::head_dim) / 2, "columns", last(out(0)), c.count(Attr::head_dim) / 2);
        grid_rows();
        break;
      }
      case Op::learnable_positions:
        if (!arity(0, 0, 1, 3, 3)) break;
        for (std::size_t i = 0; i < 3; ++i)
          expect(weight(i).columns() == last(out(0)), "table width", weight(i).columns(), last(out(0)));
        expect(c.count(Attr::frames) <= weight(0).rows(), "frames", c.count(Attr::frames), weight(0).rows());
        expect(c.count(Attr::height) <= weight(1).rows(), "height", c.count(Attr::height), weight(1).rows());
        expect(c.count(Attr::width) <= weight(2).rows(), "width", c.count(Attr::width), weight(2).rows());
        grid_rows();
        break;
      case Op::patchify: {
        const std::size_t optional = (c.count(Attr::has_condition) ? 1U : 0U) + (c.count(Attr::has_padding) ? 1U : 0U);
        if (!arity(1 + optional, 1 + optional, 1, 0, 0)) break;
        rank(in(0), 4);
        if (!problem_.empty()) break;
        const auto patch = c.count(Attr::patch_t) * c.count(Attr::patch_h) * c.count(Attr::patch_w);
        const auto columns = (extent(in(0), 0) + optional) * patch;
        expect(last(out(0)) == columns, "token elements", last(out(0)), columns);
        const auto tokens = count(in(0)) / std::max<std::uint64_t>(extent(in(0), 0) * patch, 1);
        expect(c.count(Attr::begin) + rows(out(0)) <= tokens, "last token", c.count(Attr::begin) + rows(out(0)),
               tokens);
        break;
      }
      case Op::unpatchify:
      case Op::to_decoder:
        if (!arity(1, 1, 1, 0, 2)) break;
        same_count(in(0), out(0));
        break;
      case Op::scale_noise:
        if (!arity(1, 1, 1, 0, 0)) break;
        in_place();
        break;
      case Op::euler_step:
        if (!arity(2, 3, 1, 0, 0)) break;
        in_place();
        for (std::size_t i = 1; i < c.inputs.size(); ++i) same_count(in(i), in(0));
        break;
      case Op::conv_spatial:
      case Op::conv_temporal:
        if (!arity(1, 2, 1, 2, 2)) break;
        expect(last(out(0)) == weight(0).rows(), "output channels", last(out(0)), weight(0).rows());
        expect(weight(0).columns() == last(in(0)) * (c.op == Op::conv_spatial ? 9 : 3), "weight columns",
               weight(0).columns(), last(in(0)) * (c.op == Op::conv_spatial ? 9 : 3));
        expect(size(weight(1)) == weight(0).rows(), "bias length", size(weight(1)), weight(0).rows());
        break;
      case Op::take_frame:
        if (!arity(1, 1, 1, 0, 0)) break;
        rank(in(0), 4);
        if (!problem_.empty()) break;
        expect(count(out(0)) * extent(in(0), 0) == count(in(0)), "output elements", count(out(0)),
               count(in(0)) / std::max<std::uint64_t>(extent(in(0), 0), 1));
        break;
      case Op::temporal_attention:
        if (!arity(3, 5, 1, 0, 0)) break;
        same_count(in(0), out(0));
        same_count(in(1), in(2));
        break;
      case Op::avg_pool_spatial:
      case Op::avg_pool_temporal:
      case Op::repeat_temporal:
      case Op::upsample_spatial:
        if (!arity(1, 1, 1, 0, 0)) break;
        expect(last(in(0)) == last(out(0)), "channels", last(out(0)), last(in(0)));
        break;
      case Op::patch_video:
      case Op::unpatch_video: arity(1, 1, 1, 0, 0); break;
      case Op::all_gather_rows:
        if (!arity(0, 1, 1, 0, 0)) break;
        if (c.inputs.size() == 1) {
          expect(last(in(0)) == last(out(0)), "columns", last(out(0)), last(in(0)));
          expect(rows(in(0)) <= rows(out(0)), "own rows", rows(in(0)), rows(out(0)));
          expect(in(0).dtype == out(0).dtype, "element bytes", size_of(out(0).dtype), size_of(in(0).dtype));
        }
        exchange();
        break;
      case Op::reduce_scatter:
        if (!arity(1, 1, 1, 0, 0)) break;
        type(in(0), DType::f32);
        type(out(0), DType::f32);
        rank(in(0), 3);
        if (!problem_.empty()) break;
        expect(last(in(0)) == last(out(0)), "columns", last(out(0)), last(in(0)));
        expect(rows(out(0)) <= extent(in(0), 1), "own rows", rows(out(0)), extent(in(0), 1));
        exchange();
        break;
      case Op::to_heads:
      case Op::to_tokens:
        if (!arity(1, 1, 1, 0, 0)) break;
        rank(in(0), 3);
        rank(out(0), 3);
        if (!problem_.empty()) break;
        expect(extent(in(0), 2) == extent(out(0), 2), "slice width", extent(out(0), 2), extent(in(0), 2));
        expect(in(0).dtype == out(0).dtype, "element bytes", size_of(out(0).dtype), size_of(in(0).dtype));
        exchange();
        break;
    }
    return problem_;
  }

private:
  const Slot& in(std::size_t i) const { return set_.slots[command_.inputs[i]]; }
  const Slot& out(std::size_t i) const { return set_.slots[command_.outputs[i]]; }
  const WeightSpec& weight(std::size_t i) const { return set_.weights->weights[command_.weights[i]]; }
  static std::uint64_t size(const WeightSpec& weight) { return weight.rows() * weight.columns(); }
  static std::uint64_t count(const Slot& slot) { return element_count(slot.shape); }
  static std::uint64_t last(const Slot& slot) { return slot.shape.empty() ? 1 : slot.shape.back(); }
  static std::uint64_t extent(const Slot& slot, std::size_t i) { return slot.shape[i]; }
  static std::uint64_t rows(const Slot& slot) {
    std::uint64_t rows = 1;
    for (std::size_t i = 0; i + 1 < slot.shape.size(); ++i) rows *= slot.shape[i];
    return rows;
  }

  void fail(std::string what) {
    if (problem_.empty()) problem_ = std::move(what);
  }
  void expect(bool holds, const char* what, std::uint64_t got, std::uint64_t expected) {
    if (!holds) fail(std::string(what) + ": " + std::to_string(got) + ", expected " + std::to_string(expected));
  }
  bool arity(std::size_t in_min, std::size_t in_max, std::size_t outs, std::size_t weights_min,
             std::size_t weights_max) {
    const auto& c = command_;
    if (c.inputs.size() < in_min || c.inputs.size() > in_max)
      fail("has " + std::to_string(c.inputs.size()) + " inputs");
    if (c.outputs.size() != outs) fail("has " + std::to_string(c.outputs.size()) + " outputs");
    if (c.weights.size() < weights_min || c.weights.size() > weights_max)
      fail("has " + std::to_string(c.weights.size()) + " weights");
    return problem_.empty();
  }
  void rank(const Slot& slot, std::size_t expected) {
    expect(slot.shape.size() == expected, "dimensions", slot.shape.size(), expected);
  }
  void type(const Slot& slot, DType expected) {
    if (slot.dtype != expected)
      fail(slot.name + " is " + std::string(orrery::name_of(slot.dtype)) + ", expected " +
           std::string(orrery::name_of(expected)));
  }
  void same_count(const Slot& a, const Slot& b) { expect(count(a) == count(b), "elements", count(b), count(a)); }
  void in_place() {
    if (command_.inputs.empty() || command_.outputs[0] != command_.inputs[0])
      fail("works in place, but its output is another slot");
  }
  void grid_rows() {
    const auto tokens = command_.count(Attr::frames) * command_.count(Attr::height) * command_.count(Attr::width);
    expect(command_.count(Attr::begin) + rows(out(0)) <= tokens, "last row", command_.count(Attr::begin) + rows(out(0)),
           tokens);
  }
  void exchange() {
    if (!command_.attrs.contains(Attr::exchange)) fail("has no exchange id");
  }

  const ProgramSet& set_;
  const Command& command_;
  std::string problem_;
};

/// Whether the op writes this input too (state that it keeps).
bool keeps_state(const Command& command, std::size_t input) {
  return (command.op == Op::conv_temporal && input == 1) || (command.op == Op::temporal_attention && input >= 3);
}

bool overlap(const Slot& a, const Slot& b) {
  return a.offset < b.offset + b.bytes() && b.offset < a.offset + a.bytes();
}

/// Program by program: reads after writes, lifetimes in memory, order between queues.
class ProgramCheck {
public:
  ProgramCheck(const ProgramSet& set, const Program& program)
      : set_(set), program_(program), lives_(set.slots.size()) {}

  std::string problem() {
    for (const auto& [name, id] : set_.inputs) lives_[id].input = true;
    for (std::uint32_t i = 0; i < program_.commands.size() && problem_.empty(); ++i) look_at(i);
    if (problem_.empty()) check_lifetimes();
    if (problem_.empty()) check_order();
    return problem_;
  }

private:
  struct Life {
    bool input = false, used = false;
    std::int64_t first = 0, last = -1;
  };

  std::string place(std::uint32_t i) const {
    const auto& command = program_.commands[i];
    return "command " + std::to_string(i) + " (" + std::string(cards::name_of(command.op)) + " " + command.label + ")";
  }

  void touch(SlotId id, std::int64_t when) {
    auto& life = lives_[id];
    if (!life.used) life.first = life.input ? -1 : when;
    life.used = true;
    life.last = std::max(life.last, when);
  }

  void look_at(std::uint32_t i) {
    const auto& command = program_.commands[i];
    for (const auto* list : {&command.inputs, &command.outputs, &command.reuses})
      for (const auto id : *list)
        if (id >= set_.slots.size()) {
          problem_ = place(i) + " names slot " + std::to_string(id) + ", which does not exist";
          return;
        }
    for (const auto id : command.weights)
      if (!set_.weights || id >= set_.weights->weights.size()) {
        problem_ = place(i) + " names weight " + std::to_string(id) + ", which does not exist";
        return;
      }
    for (const auto id : command.after)
      if (id >= i) {
        problem_ = place(i) + " waits for command " + std::to_string(id) + ", which is not before it";
        return;
      }
    for (const auto id : command.inputs) {
      const auto& life = lives_[id];
      if (!set_.slots[id].state && !life.input && !life.used) {
        problem_ = place(i) + " reads " + set_.slots[id].name + ", which nothing has written";
        return;
      }
      touch(id, i);
    }
    for (const auto id : command.outputs) touch(id, i);
    if (auto complaint = ShapeCheck(set_, command).problem(); !complaint.empty())
      problem_ = place(i) + ": " + complaint;
  }

  void check_lifetimes() {
    const auto end = static_cast<std::int64_t>(program_.commands.size());
    for (const auto& [name, id] : set_.outputs)
      if (lives_[id].used) lives_[id].last = end;
    std::vector<SlotId> order;
    for (SlotId id = 0; id < set_.slots.size(); ++id)
      if (lives_[id].used && !set_.slots[id].state && set_.slots[id].bytes() > 0) order.push_back(id);
    std::sort(order.begin(), order.end(), [&](SlotId a, SlotId b) { return lives_[a].first < lives_[b].first; });
    std::vector<SlotId> alive;
    for (const auto id : order) {
      std::erase_if(alive, [&](SlotId other) { return lives_[other].last < lives_[id].first; });
      for (const auto other : alive)
        if (overlap(set_.slots[id], set_.slots[other])) {
          problem_ =
              "slots " + set_.slots[other].name + " and " + set_.slots[id].name + " share bytes while both are live";
          return;
        }
      alive.push_back(id);
    }
  }

  /// Commands of one queue `compute` run in order; all other order must follow from `after`.
  void check_order() {
    const auto count = program_.commands.size();
    const auto words = (count + 63) / 64;
    std::vector<std::uint64_t> done(count * words, 0);  // done[i]: commands known to be over when i starts.
    std::optional<std::size_t> compute_before;
    const auto learn = [&](std::size_t i, std::size_t from) {
      for (std::size_t w = 0; w < words; ++w) done[i * words + w] |= done[from * words + w];
      done[i * words + from / 64] |= std::uint64_t{1} << (from % 64);
    };
    struct Access {
      std::vector<std::uint32_t> readers;
      std::optional<std::uint32_t> writer;
    };
    // Neighbours: slots whose bytes overlap.
    std::vector<Access> accesses(set_.slots.size());
    std::vector<SlotId> used;
    for (SlotId id = 0; id < set_.slots.size(); ++id)
      if (lives_[id].used && set_.slots[id].bytes() > 0) used.push_back(id);
    std::sort(used.begin(), used.end(),
              [&](SlotId a, SlotId b) { return set_.slots[a].offset < set_.slots[b].offset; });
    std::vector<std::vector<SlotId>> neighbours(set_.slots.size());
    for (std::size_t a = 0; a < used.size(); ++a)
      for (std::size_t b = a; b < used.size(); ++b) {
        const auto& first = set_.slots[used[a]];
        if (set_.slots[used[b]].offset >= first.offset + first.bytes()) break;
        neighbours[used[a]].push_back(used[b]);
        if (a != b) neighbours[used[b]].push_back(used[a]);
      }
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto& command = program_.commands[i];
      for (const auto from : command.after) learn(i, from);
      if (command.queue == Queue::compute) {
        if (compute_before) learn(i, *compute_before);
        compute_before = i;
      }
      const auto need = [&](std::uint32_t earlier, SlotId slot) {
        if (earlier == i || (done[i * words + earlier / 64] >> (earlier % 64) & 1U) != 0) return;
        if (problem_.empty())
          problem_ = place(i) + " does not wait for " + place(earlier) + " although both use " + set_.slots[slot].name;
      };
      const auto read = [&](SlotId id) {
        for (const auto other : neighbours[id])
          if (accesses[other].writer) need(*accesses[other].writer, id);
        accesses[id].readers.push_back(i);
      };
      const auto write = [&](SlotId id) {
        for (const auto other : neighbours[id]) {
          if (accesses[other].writer) need(*accesses[other].writer, id);
          for (const auto reader : accesses[other].readers) need(reader, id);
        }
        accesses[id].writer = i;
        accesses[id].readers.clear();
      };
      for (std::size_t k = 0; k < command.inputs.size(); ++k) {
        read(command.inputs[k]);
        if (keeps_state(command, k)) write(command.inputs[k]);
      }
      for (const auto id : command.outputs) write(id);
      if (!problem_.empty()) return;
    }
  }

  const ProgramSet& set_;
  const Program& program_;
  std::vector<Life> lives_;
  std::string problem_;
};

}  // namespace

Status ProgramSet::check() const {
  const auto fail = [&](std::string what) { return Error{ErrorCode::internal, component + ": " + std::move(what)}; };
  if (!weights) return fail("the set has no weights");
  std::vector<SlotId> states;
  for (SlotId id = 0; id < slots.size(); ++id) {
    const auto& slot = slots[id];
    if (!checked_bytes(slot.shape, slot.dtype)) return fail("slot " + slot.name + " is too large");
    if (slot.offset % 64 != 0) return fail("slot " + slot.name + " is not aligned to 64 bytes");
    const auto begin = slot.state ? 0 : state_bytes;
    const auto end = slot.state ? state_bytes : state_bytes + activation_bytes;
    if (slot.offset < begin || slot.offset > end || slot.bytes() > end - slot.offset)
      return fail("slot " + slot.name + " lies outside its memory");
    if (slot.state && slot.bytes() > 0) states.push_back(id);
  }
  std::sort(states.begin(), states.end(), [&](SlotId a, SlotId b) { return slots[a].offset < slots[b].offset; });
  for (std::size_t i = 1; i < states.size(); ++i)
    if (overlap(slots[states[i - 1]], slots[states[i]]))
      return fail("state slots " + slots[states[i - 1]].name + " and " + slots[states[i]].name + " share bytes");
  for (const auto* names : {&inputs, &outputs})
    for (const auto& [name, id] : *names)
      if (id >= slots.size()) return fail(name + " names slot " + std::to_string(id) + ", which does not exist");
  for (const auto& program : programs)
    if (auto problem = ProgramCheck(*this, program).problem(); !problem.empty())
      return fail("program " + program.name + ", " + problem);
  return Done{};
}

}  // namespace orrery::cards
