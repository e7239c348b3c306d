// What a model folder asks of a cluster: from the compiler's figures to the planner's input.
//
// topology/ knows no model files and compiler/ knows no clusters; this joins them. Guardrail stages are added, so a
// plan names a card for every stage of the pipeline. Plain code, no actors.

#pragma once

#include "base/result.hpp"
#include "compiler/model_folder.hpp"
#include "topology/demand.hpp"
#include "topology/model_demand.hpp"
#include "topology/model_spec.hpp"

namespace orrery::actors {

/// The defaults of a request: the YAML file's, which stand for the folder's generation_config.json too.
/// Exact for weights and nearly so for lane memory, because the programs themselves are counted: compiles each component once
/// for each share that a card may have (tens of milliseconds, for the published models some hundreds). Weights are counted as
/// the kernels of this machine pack them. Reads no weights. Fails with invalid_model when a component is missing, and with invalid_request
/// when the size does not suit the model.
Result<topology::Demand> demand_of_folder(const compiler::ModelFolder& folder, const topology::ModelSpec& model,
                                          const topology::RequestShape& shape);

/// From the model's folder when it is on this machine, else from the geometry in its YAML file (an estimate).
/// `from_folder`, if given, says which it was. Fails with what the folder is missing when there is no geometry either.
Result<topology::Demand> demand_of(const topology::ModelSpec& model, const topology::RequestShape& shape, bool* from_folder = nullptr);

}  // namespace orrery::actors
