// Values become slots of lane memory, nodes become commands with queues and dependencies.
//
// Memory: slots that are written in place share one slot. State slots come first. Within a program the largest
// slot is placed first, each at the lowest offset where no slot lies that lives at the same time; programs share
// the activation memory.

#include <algorithm>
#include <set>
#include <string>
#include <unordered_map>

#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

using cards::Op;
using cards::Queue;
using cards::SlotId;

namespace {

constexpr std::uint64_t alignment = 64;
std::uint64_t aligned(std::uint64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

std::string key_of(const cards::WeightSpec& weight) {
  return weight.tensor + '|' + std::to_string(static_cast<int>(weight.form)) + '|' +
         std::to_string(static_cast<int>(weight.dtype)) + '|' + std::to_string(weight.row_begin) + '|' +
         std::to_string(weight.row_end) + '|' + std::to_string(weight.column_begin) + '|' +
         std::to_string(weight.column_end);
}

/// Who touched which bytes last: ranges of lane memory, split where accesses differ.
class AccessMap {
public:
  /// Adds to `found` what a read (or write) of [begin, end) by command `who` has to wait for.
  void access(std::uint64_t begin, std::uint64_t end, std::uint32_t who, bool writes, std::set<std::uint32_t>& found) {
    if (begin >= end) return;
    split_at(begin);
    split_at(end);
    auto at = ranges_.lower_bound(begin);
    std::uint64_t due = begin;
    while (due < end) {
      if (at == ranges_.end() || at->first > due) {
        const auto stop = at == ranges_.end() ? end : std::min(end, at->first);
        at = ranges_.emplace(due, Range{stop, none, {}}).first;
      }
      auto& range = at->second;
      if (range.writer != none) found.insert(range.writer);
      if (writes) {
        found.insert(range.readers.begin(), range.readers.end());
        range.readers.clear();
        range.writer = who;
      } else if (range.readers.empty() || range.readers.back() != who) {
        range.readers.push_back(who);
      }
      due = range.end;
      ++at;
    }
    found.erase(who);
  }

private:
  static constexpr std::uint32_t none = UINT32_MAX;
  struct Range {
    std::uint64_t end;
    std::uint32_t writer;
    std::vector<std::uint32_t> readers;
  };
  void split_at(std::uint64_t where) {
    auto at = ranges_.upper_bound(where);
    if (at == ranges_.begin()) return;
    --at;
    if (at->first == where || at->second.end <= where) return;
    Range right = at->second;
    at->second.end = where;
    ranges_.emplace(where, std::move(right));
  }
  std::map<std::uint64_t, Range> ranges_;
};

class Planner {
public:
  Planner(const Graph& graph, std::shared_ptr<const cards::WeightSet> weights)
      : graph_(graph), set_(std::make_shared<cards::ProgramSet>()) {
    set_->component = graph.component;
    set_->weights = std::move(weights);
  }

  std::shared_ptr<cards::ProgramSet> run() {
    join_in_place();
    make_slots();
    place_state();
    for (const auto& program : graph_.programs) place_activations(program);
    for (auto& slot : set_->slots)
      if (!slot.state) slot.offset += set_->state_bytes;
    for (const auto& [name, value] : graph_.inputs)
      if (slot_of_[root(value)] != UINT32_MAX) set_->inputs[name] = slot(value);
    for (const auto& [name, value] : graph_.outputs)
      if (slot_of_[root(value)] != UINT32_MAX) set_->outputs[name] = slot(value);
    number_weights();
    for (const auto& program : graph_.programs) write_program(program);
    return set_;
  }

private:
  ValueId root(ValueId value) const {
    while (joined_[value] != value) value = joined_[value];
    return value;
  }
  SlotId slot(ValueId value) const { return slot_of_[root(value)]; }

  void join_in_place() {
    joined_.resize(graph_.values.size());
    for (ValueId i = 0; i < joined_.size(); ++i) joined_[i] = i;
    std::vector<bool> is_output(graph_.values.size(), false);
    for (const auto& [name, value] : graph_.outputs) is_output[value] = true;
    for (const auto& program : graph_.programs) {
      std::vector<std::size_t> last_use(graph_.values.size(), 0);
      for (std::size_t i = 0; i < program.nodes.size(); ++i)
        for (const auto input : program.nodes[i].inputs) last_use[input] = i;
      for (std::size_t i = 0; i < program.nodes.size(); ++i) {
        const auto& node = program.nodes[i];
        const auto how = in_place_of(node.op);
        if (how == InPlace::never || node.outputs[0] == node.inputs[0]) continue;
        const auto& from = graph_.values[node.inputs[0]];
        const auto& to = graph_.values[node.outputs[0]];
        const bool dies = last_use[node.inputs[0]] == i && !from.state && !to.state && !is_output[node.inputs[0]] &&
                          from.dtype == to.dtype && element_count(from.shape) == element_count(to.shape);
        ORRERY_CHECK(dies || how == InPlace::allowed);
        if (dies) joined_[node.outputs[0]] = root(node.inputs[0]);
      }
    }
  }

  void make_slots() {
    slot_of_.assign(graph_.values.size(), UINT32_MAX);
    const auto use = [&](ValueId value) {
      auto& id = slot_of_[root(value)];
      if (id != UINT32_MAX) return;
      id = static_cast<SlotId>(set_->slots.size());
      const auto& what = graph_.values[root(value)];
      set_->slots.push_back({what.name, what.dtype, what.shape, what.state, 0});
    };
    for (const auto& program : graph_.programs)
      for (const auto& node : program.nodes) {
        for (const auto input : node.inputs) use(input);
        for (const auto output : node.outputs) use(output);
      }
  }

  void place_state() {
    for (auto& slot : set_->slots)
      if (slot.state) {
        slot.offset = set_->state_bytes;
        set_->state_bytes += aligned(slot.bytes());
      }
  }

  void place_activations(const GraphProgram& program) {
    struct Life {
      SlotId slot = 0;
      std::int64_t first = 0, last = 0;
      std::uint64_t bytes = 0, offset = 0;
    };
    std::vector<std::int64_t> index(set_->slots.size(), -1);
    std::vector<Life> lives;
    const auto touch = [&](ValueId value, std::int64_t when) {
      const auto id = slot(value);
      if (set_->slots[id].state) return;
      if (index[id] < 0) {
        index[id] = static_cast<std::int64_t>(lives.size());
        lives.push_back({id, graph_.values[root(value)].input ? -1 : when, when, aligned(set_->slots[id].bytes()), 0});
      }
      lives[static_cast<std::size_t>(index[id])].last = when;
    };
    for (std::size_t i = 0; i < program.nodes.size(); ++i) {
      for (const auto input : program.nodes[i].inputs) touch(input, static_cast<std::int64_t>(i));
      for (const auto output : program.nodes[i].outputs) touch(output, static_cast<std::int64_t>(i));
    }
    for (const auto& [name, value] : graph_.outputs)
      if (slot_of_[root(value)] != UINT32_MAX && index[slot(value)] >= 0)
        lives[static_cast<std::size_t>(index[slot(value)])].last = static_cast<std::int64_t>(program.nodes.size());

    std::vector<Life*> order;
    for (auto& life : lives)
      if (life.bytes > 0) order.push_back(&life);
    std::stable_sort(order.begin(), order.end(), [](const Life* a, const Life* b) { return a->bytes > b->bytes; });
    std::vector<const Life*> placed;  // By offset.
    for (auto* life : order) {
      std::uint64_t offset = 0;
      for (const auto* other : placed) {
        if (other->last < life->first || life->last < other->first) continue;
        if (other->offset >= offset + life->bytes) break;
        offset = std::max(offset, other->offset + other->bytes);
      }
      life->offset = offset;
      set_->slots[life->slot].offset = offset;
      set_->activation_bytes = std::max(set_->activation_bytes, offset + life->bytes);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), life,
                                     [](const Life* a, const Life* b) { return a->offset < b->offset; }),
                    life);
    }
  }

  void number_weights() {
    for (cards::WeightId id = 0; id < set_->weights->weights.size(); ++id)
      weight_ids_.emplace(key_of(set_->weights->weights[id]), id);
  }

  void write_program(const GraphProgram& program) {
    cards::Program result;
    result.name = program.name;
    AccessMap accesses;
    std::set<SlotId> sent;                  // Exchange commands may still read them.
    std::set<std::uint32_t> exchange_done;  // Known to the compute queue.
    for (std::uint32_t i = 0; i < program.nodes.size(); ++i) {
      const auto& node = program.nodes[i];
      cards::Command command;
      command.op = node.op;
      command.queue = is_exchange(node.op) ? Queue::exchange : Queue::compute;
      command.label = node.label;
      command.attrs = node.attrs;
      command.slices = node.slices;
      for (const auto input : node.inputs) command.inputs.push_back(slot(input));
      for (const auto output : node.outputs) command.outputs.push_back(slot(output));
      for (const auto& weight : node.weights) {
        const auto found = weight_ids_.find(key_of(weight));
        // A weight of another set gets an id that `check` refuses.
        command.weights.push_back(found == weight_ids_.end() ? UINT32_MAX : found->second);
      }

      std::set<std::uint32_t> needs;
      const auto access = [&](SlotId id, bool writes) {
        const auto& slot = set_->slots[id];
        accesses.access(slot.offset, slot.offset + slot.bytes(), i, writes, needs);
        if (!writes) return;
        for (auto at = sent.begin(); at != sent.end();) {
          const auto& other = set_->slots[*at];
          const bool overlaps = slot.offset < other.offset + other.bytes() && other.offset < slot.offset + slot.bytes();
          if (overlaps) command.reuses.push_back(*at);
          at = overlaps ? sent.erase(at) : std::next(at);
        }
      };
      for (std::size_t k = 0; k < command.inputs.size(); ++k) access(command.inputs[k], keeps_state(node.op, k));
      for (const auto id : command.outputs) access(id, true);

      // The compute queue runs in order: it waits for each exchange once, and others for its last command.
      std::uint32_t last_compute = UINT32_MAX;
      for (const auto need : needs) {
        const bool compute = result.commands[need].queue == Queue::compute;
        if (compute)
          last_compute = need;
        else if (command.queue == Queue::exchange || exchange_done.insert(need).second)
          command.after.push_back(need);
      }
      if (command.queue == Queue::exchange) {
        if (last_compute != UINT32_MAX) command.after.push_back(last_compute);
        for (const auto id : command.inputs) sent.insert(id);
      }
      std::sort(command.after.begin(), command.after.end());
      result.commands.push_back(std::move(command));
    }
    set_->programs.push_back(std::move(result));
  }

  const Graph& graph_;
  std::shared_ptr<cards::ProgramSet> set_;
  std::vector<ValueId> joined_;
  std::vector<SlotId> slot_of_;
  std::unordered_map<std::string, cards::WeightId> weight_ids_;
};

}  // namespace

std::shared_ptr<cards::ProgramSet> plan(const Graph& graph, std::shared_ptr<const cards::WeightSet> weights) {
  return Planner(graph, std::move(weights)).run();
}

}  // namespace orrery::compiler
