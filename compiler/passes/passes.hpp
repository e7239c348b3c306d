// The passes that compile.cpp runs, in its order. Each is a pure function of a graph.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compiler/graph.hpp"
#include "compiler/layout.hpp"

namespace orrery::compiler {

/// The shape of the first output as it follows from inputs, weights and attributes; nothing where the table of
/// operations leaves it to the front end.
std::optional<Shape> inferred_shape(cards::Op op, const std::vector<Shape>& inputs, const std::vector<cards::WeightSpec>& weights,
                                    const std::map<cards::Attr, double>& attrs);

/// shapes.cpp: every node of a logical graph against the inference above. Empty, or the first disagreement.
std::string shape_problem(const Graph& graph);

/// fuse.cpp: an `activate` whose input is used nowhere else moves into the product or norm that made it.
Graph fuse(Graph graph);

/// split.cpp: the part of one rank, with exchange operations. Which value lives where:
///
///   whole    the same on every rank              time vectors, text, latents
///   rows     this rank's rows                    residual stream, norms, gates
///   slices   this rank's slices, all rows        heads, feed-forward columns
///   own rows, all slices [V, own rows, w]        sequence split, outside attention
///
/// One rank and one group: no exchange operations, otherwise the same graph. Exchange ids are counted over the
/// whole logical graph, so they agree on all ranks of all groups.
Graph split(const Graph& graph, const Layout& layout);

/// interleave.cpp: where one rank computes both guidance branches, they take turns: after each exchange of one branch
/// comes the other's work, so that the exchange goes on behind it, and block by block, so that both use a block's
/// weights while they are on the card. Order only: every node stays as it is.
Graph interleave(Graph graph);

/// plan.cpp: values to slots (lifetimes to offsets), queues, dependencies.
std::shared_ptr<cards::ProgramSet> plan(const Graph& graph, std::shared_ptr<const cards::WeightSet> weights);

/// Where the op writes into its first input's memory: always, when that input dies there, or never.
enum class InPlace : std::uint8_t { never, allowed, always };
InPlace in_place_of(cards::Op op);
bool is_exchange(cards::Op op);
/// Whether the op also rewrites this input (a state slot that it keeps).
bool keeps_state(cards::Op op, std::size_t input);

}  // namespace orrery::compiler
