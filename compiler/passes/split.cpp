// The logical graph cut to one rank of one group.

#include <algorithm>

#include "base/slice_tree.hpp"
#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

using cards::Attr;
using cards::Op;

namespace {

enum class Spread : std::uint8_t { whole, rows, slices, own_rows };

/// Where a logical value went.
struct Placed {
  bool made = false;
  Spread spread = Spread::whole;
  ValueId local = no_value;   // In its spread; no_value when another group computes it.
  ValueId whole = no_value;   // All rows, once gathered.
  ValueId sliced = no_value;  // After to_heads.
  bool gathered = false;
  bool headed = false;
  int branch = -1;
};

class Splitter {
public:
  Splitter(const Graph& graph, const Layout& layout) : in_(graph), layout_(layout), placed_(graph.values.size()) {
    out_.component = graph.component;
    out_.slice_count = graph.slice_count;
    for (std::uint32_t slice = 0; slice < graph.slice_count; ++slice) all_slices_.push_back(slice);
  }

  Graph run() {
    for (const auto& program : in_.programs) {
      out_.programs.push_back({program.name, {}});
      for (const auto& node : program.nodes) split_node(node);
    }
    for (const auto& [name, value] : in_.outputs) {
      const auto whole = whole_of(value, -1);
      if (whole != no_value) out_.outputs[name] = whole;
    }
    for (const auto& [name, value] : in_.inputs)
      if (placed_[value].made && placed_[value].local != no_value) out_.inputs[name] = placed_[value].local;
    return std::move(out_);
  }

private:
  bool two_groups() const { return layout_.owned.size() == 2; }
  bool several() const { return layout_.rank_count() > 1; }
  bool mine(int branch) const {
    return branch < 0 || !two_groups() || static_cast<std::uint32_t>(branch) == layout_.group;
  }
  const Value& logical(ValueId value) const { return in_.values[value]; }

  ValueId new_value(const std::string& name, DType dtype, Shape shape, bool state = false, bool input = false) {
    Value value;
    value.name = name;
    value.dtype = dtype;
    value.shape = std::move(shape);
    value.state = state;
    value.input = input;
    out_.values.push_back(std::move(value));
    return static_cast<ValueId>(out_.values.size() - 1);
  }

  /// Inputs and state that nothing wrote yet are whole.
  Placed& at(ValueId value, int consumer_branch) {
    auto& placed = placed_[value];
    const auto& what = logical(value);
    if (!placed.made) {
      ORRERY_CHECK(what.input || what.state);
      placed.made = true;
      placed.branch = what.input ? consumer_branch : -1;
      if (mine(placed.branch)) placed.local = new_value(what.name, what.dtype, what.shape, what.state, what.input);
    }
    return placed;
  }

  Spread spread_of(ValueId value, int consumer_branch) { return at(value, consumer_branch).spread; }

  /// This rank's part of a logical shape.
  Shape local_shape(const Shape& shape, Spread spread) const {
    auto local = shape;
    switch (spread) {
      case Spread::whole: break;
      case Spread::rows:
        // Complete sums keep a leading 1: [1, rows, width].
        if (local.size() == 3)
          local[1] = layout_.rows(local[1]).count();
        else
          local[0] = layout_.rows(local[0]).count();
        break;
      case Spread::slices: local[0] = local[0] / in_.slice_count * layout_.slices().size(); break;
      case Spread::own_rows: local[1] = layout_.rows(local[1]).count(); break;
    }
    return local;
  }

  void emit(Node node) {
    if (mine(node.branch)) out_.programs.back().nodes.push_back(std::move(node));
  }

  Node exchange(Op op, const std::string& label, ValueId input, int branch) {
    Node node;
    node.op = op;
    node.label = label;
    if (input != no_value) node.inputs = {input};
    node.branch = branch;
    node.attrs[Attr::exchange] = next_exchange_;
    return node;
  }

  /// All rows of a value on every rank that runs `consumer_branch`.
  ValueId whole_of(ValueId value, int consumer_branch) {
    auto& placed = at(value, consumer_branch);
    const bool across = two_groups() && placed.branch >= 0 && consumer_branch < 0;
    if (placed.spread == Spread::whole) {
      ORRERY_CHECK(!across);
      return placed.local;
    }
    ORRERY_CHECK(placed.spread == Spread::rows);
    if (placed.gathered) return placed.whole;
    placed.gathered = true;
    const auto& what = logical(value);
    if (across || (several() && mine(placed.branch))) {
      auto node = exchange(Op::all_gather_rows, what.name + ".gather", placed.local, across ? -1 : placed.branch);
      node.attrs[Attr::source_group] = across ? placed.branch : -1;
      Shape shape = what.shape;
      if (shape.size() == 3) shape.erase(shape.begin());
      placed.whole = new_value(what.name + ".all", what.dtype, std::move(shape));
      node.outputs = {placed.whole};
      emit(std::move(node));
    } else {
      placed.whole = placed.local;
    }
    ++next_exchange_;
    return placed.whole;
  }

  /// Own slices, all rows, of a value that has all slices of own rows.
  ValueId sliced_of(ValueId value, int branch) {
    auto& placed = at(value, branch);
    if (placed.spread == Spread::slices || placed.spread == Spread::whole) return placed.local;
    ORRERY_CHECK(placed.spread == Spread::own_rows);
    if (placed.headed) return placed.sliced;
    placed.headed = true;
    if (several() && mine(branch)) {
      const auto& what = logical(value);
      auto node = exchange(Op::to_heads, what.name + ".to_heads", placed.local, branch);
      node.slices = layout_.slices();
      placed.sliced = new_value(what.name + ".heads", what.dtype, local_shape(what.shape, Spread::slices));
      node.outputs = {placed.sliced};
      emit(std::move(node));
    } else {
      placed.sliced = placed.local;
    }
    ++next_exchange_;
    return placed.sliced;
  }

  /// Says where a node's output is, and makes its value.
  ValueId place(ValueId value, Spread spread, int branch) {
    auto& placed = placed_[value];
    const auto& what = logical(value);
    if (placed.made) {  // State that is written again.
      ORRERY_CHECK(what.state && placed.spread == spread);
      return placed.local;
    }
    placed.made = true;
    placed.spread = spread;
    // State of a branch stays with it; shared state belongs to all.
    placed.branch = branch;
    if (mine(branch)) placed.local = new_value(what.name, what.dtype, local_shape(what.shape, spread), what.state);
    return placed.local;
  }

  void split_node(const Node& node) {
    const int branch = node.branch;
    Node local = node;
    local.inputs.clear();
    local.outputs.clear();
    switch (node.op) {
      case Op::patchify:
        for (const auto input : node.inputs) local.inputs.push_back(whole_of(input, branch));
        return finish(node, std::move(local), Spread::rows, true);
      case Op::learnable_positions: return finish(node, std::move(local), Spread::rows, true);
      case Op::rope_table:
        return finish(node, std::move(local), layout_.split == Split::sequence ? Spread::rows : Spread::whole, true);
      case Op::embedding: return split_embedding(node, std::move(local));
      case Op::linear:
      case Op::rms_norm:
      case Op::activate:
      case Op::slice_columns: return split_rowwise(node, std::move(local), {0});
      case Op::layer_norm_modulate: return split_rowwise(node, std::move(local), {0});
      case Op::gate_add: return split_rowwise(node, std::move(local), {0, 2});
      case Op::add: return split_rowwise(node, std::move(local), {0, 1});
      case Op::linear_to_slices: return split_to_slices(node, std::move(local));
      case Op::linear_from_slices: return split_from_slices(node, std::move(local));
      case Op::head_norm_rope: return split_head_norm(node, std::move(local));
      case Op::attention: return split_attention(node, std::move(local));
      case Op::relative_bias:
        local.slices = layout_.slices();
        return finish(node, std::move(local), Spread::slices, false);
      default:
        for (const auto input : node.inputs) local.inputs.push_back(whole_of(input, branch));
        return finish(node, std::move(local), Spread::whole, false);
    }
  }

  /// `begins`: the op makes rows from `begin` on.
  void finish(const Node& node, Node local, Spread spread, bool begins) {
    if (begins) {
      const auto rows = logical(node.outputs[0]).shape[0];
      local.attrs[Attr::begin] =
          spread == Spread::rows && mine(node.branch) ? static_cast<double>(layout_.rows(rows).begin) : 0.0;
    }
    for (const auto output : node.outputs) local.outputs.push_back(place(output, spread, node.branch));
    emit(std::move(local));
  }

  /// The token table is looked up for all rows everywhere; each rank goes on with its own.
  void split_embedding(const Node& node, Node local) {
    local.inputs.push_back(whole_of(node.inputs[0], node.branch));
    const auto output = node.outputs[0];
    const auto& what = logical(output);
    if (!several()) return finish(node, std::move(local), Spread::rows, false);
    const auto all = new_value(what.name + ".all", what.dtype, what.shape);
    local.outputs = {all};
    Node copy;
    copy.op = Op::copy_rows;
    copy.label = node.label + ".own_rows";
    copy.branch = node.branch;
    copy.inputs = {all};
    copy.attrs[Attr::begin] = static_cast<double>(layout_.rows(what.shape[0]).begin);
    copy.outputs = {place(output, Spread::rows, node.branch)};
    emit(std::move(local));
    emit(std::move(copy));
  }

  /// Each output row depends on the same row of the inputs `along`; other inputs are vectors.
  void split_rowwise(const Node& node, Node local, std::initializer_list<std::size_t> along) {
    const auto spread = spread_of(node.inputs[*along.begin()], node.branch);
    for (const auto i : along) ORRERY_CHECK(spread_of(node.inputs[i], node.branch) == spread);
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const bool row_input = std::find(along.begin(), along.end(), i) != along.end();
      local.inputs.push_back(row_input ? at(node.inputs[i], node.branch).local : whole_of(node.inputs[i], node.branch));
    }
    finish(node, std::move(local), spread, false);
  }

  /// One weight for each slice: rows of the matrix when `by_rows`, else columns.
  static std::vector<cards::WeightSpec> cut(const cards::WeightSpec& whole, const std::vector<std::uint32_t>& slices,
                                            std::uint32_t slice_count, bool by_rows) {
    std::vector<cards::WeightSpec> parts;
    for (const auto slice : slices) {
      auto part = whole;
      const auto width = (by_rows ? whole.rows() : whole.columns()) / slice_count;
      auto& begin = by_rows ? part.row_begin : part.column_begin;
      auto& end = by_rows ? part.row_end : part.column_end;
      begin = slice * width;
      end = begin + width;
      parts.push_back(std::move(part));
    }
    return parts;
  }

  void split_to_slices(const Node& node, Node local) {
    const auto input = node.inputs[0];
    const auto from = spread_of(input, node.branch);
    const bool sequence = layout_.split == Split::sequence;
    Spread to = Spread::slices;
    if (sequence) to = from == Spread::rows ? Spread::own_rows : Spread::whole;
    local.inputs.push_back(sequence ? at(input, node.branch).local : whole_of(input, node.branch));
    local.slices = sequence ? all_slices_ : layout_.slices();
    local.weights = cut(node.weights[0], local.slices, in_.slice_count, true);
    finish(node, std::move(local), to, false);
  }

  void split_from_slices(const Node& node, Node local) {
    const auto input = node.inputs[0];
    const auto output = node.outputs[0];
    const auto from = spread_of(input, node.branch);
    const int branch = node.branch;
    if (layout_.split == Split::tensor) {
      ORRERY_CHECK(from == Spread::slices);
      local.inputs.push_back(at(input, branch).local);
      local.slices = layout_.slices();
      local.weights = cut(node.weights[0], local.slices, in_.slice_count, false);
      if (several() && mine(branch)) {
        const auto pieces_count = pieces_of(local.slices, in_.slice_count).size();
        const auto& shape = logical(output).shape;
        const auto pieces = new_value(logical(output).name + ".pieces", DType::f32, {pieces_count, shape[1], shape[2]});
        local.outputs = {pieces};
        emit(std::move(local));
        auto reduce = exchange(Op::reduce_scatter, node.label + ".reduce", pieces, branch);
        reduce.outputs = {place(output, Spread::rows, branch)};
        emit(std::move(reduce));
      } else {
        finish(node, std::move(local), Spread::rows, false);
      }
      ++next_exchange_;
      return;
    }
    auto tokens = at(input, branch).local;
    if (from == Spread::slices) {
      if (several() && mine(branch)) {
        auto move = exchange(Op::to_tokens, logical(input).name + ".to_tokens", tokens, branch);
        move.slices = layout_.slices();
        tokens = new_value(logical(input).name + ".tokens", logical(input).dtype,
                           local_shape(logical(input).shape, Spread::own_rows));
        move.outputs = {tokens};
        emit(std::move(move));
      }
      ++next_exchange_;
    }
    local.inputs.push_back(tokens);
    local.slices = all_slices_;
    local.weights = cut(node.weights[0], local.slices, in_.slice_count, false);
    finish(node, std::move(local), from == Spread::whole ? Spread::whole : Spread::rows, false);
  }

  void split_head_norm(const Node& node, Node local) {
    const auto spread = spread_of(node.inputs[0], node.branch);
    local.inputs.push_back(at(node.inputs[0], node.branch).local);
    for (std::size_t i = 1; i < node.inputs.size(); ++i) {
      // Rotary tables were made for the rows that this split has here.
      ORRERY_CHECK((spread_of(node.inputs[i], node.branch) == Spread::rows) == (spread == Spread::own_rows));
      local.inputs.push_back(at(node.inputs[i], node.branch).local);
    }
    finish(node, std::move(local), spread, false);
  }

  void split_attention(const Node& node, Node local) {
    const int branch = node.branch;
    const auto queries = spread_of(node.inputs[0], branch), keys = spread_of(node.inputs[1], branch);
    Spread spread = queries;
    if (queries == Spread::own_rows && keys == Spread::own_rows) {
      spread = Spread::slices;
      for (std::size_t i = 0; i < 3; ++i) local.inputs.push_back(sliced_of(node.inputs[i], branch));
    } else {
      ORRERY_CHECK(queries == keys || (queries == Spread::own_rows && keys == Spread::whole));
      for (std::size_t i = 0; i < 3; ++i) local.inputs.push_back(at(node.inputs[i], branch).local);
    }
    for (std::size_t i = 3; i < node.inputs.size(); ++i) {
      const auto extra = spread_of(node.inputs[i], branch);
      ORRERY_CHECK(extra == Spread::whole || spread == Spread::slices);
      local.inputs.push_back(at(node.inputs[i], branch).local);
    }
    local.slices = spread == Spread::slices ? layout_.slices() : all_slices_;
    finish(node, std::move(local), spread, false);
  }

  const Graph& in_;
  const Layout& layout_;
  std::vector<Placed> placed_;
  Graph out_;
  std::uint32_t next_exchange_ = 0;
  std::vector<std::uint32_t> all_slices_;
};

}  // namespace

Graph split(const Graph& graph, const Layout& layout) { return Splitter(graph, layout).run(); }

}  // namespace orrery::compiler
