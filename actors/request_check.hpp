// Whether a request suits the model: every number in range, sizes on the model's grid.

#pragma once

#include <string>

#include "base/result.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::actors {

struct RequestSpec;

/// Fails with invalid_request: one sentence that names the value, and a hint with the nearest good ones.
Status check_request(const RequestSpec& request, const compiler::ModelFolder& model);

}  // namespace orrery::actors
