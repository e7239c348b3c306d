// Whether a model can make videos, and whether a request suits it: every number in range, sizes on the model's grid.

#pragma once

#include <string>

#include "actors/request_spec.hpp"
#include "base/result.hpp"
#include "base/json.hpp"
#include "base/tensor.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::actors {

/// A file that a model folder lacks makes the model wrong: not_found and io_failed become invalid_model.
Error model_error(Error error);

/// Whether the folder has all that makes a video of a text. Fails with invalid_model.
Status check_whole(const compiler::ModelFolder& model);

/// What a request is when nobody says otherwise: the folder's generation_config. Without a prompt.
RequestSpec defaults_of(const compiler::ModelFolder& model);

/// Fails with invalid_request: one sentence that names the value, and a hint with the nearest good ones.
Status check_request(const RequestSpec& request, const compiler::ModelFolder& model);

/// Whether noise of this shape, [C,T,H,W], is what the denoiser takes for a request that check_request accepts. Another
/// shape would leave it waiting for the rest. Fails with invalid_request.
Status check_noise(const Shape& noise, const RequestSpec& request, const compiler::ModelFolder& model);

/// A request as the journal keeps it; the same request gives the same text.
OrderedJson json_of(const RequestSpec& request);
/// Fails with invalid_request.
Result<RequestSpec> request_spec_from(const std::string& text);

}  // namespace orrery::actors
