#include <catch2/catch.hpp>

#include <limits>

#include "actors/request_check.hpp"
#include "actors/request_spec.hpp"

using namespace orrery;
using namespace orrery::actors;

namespace {
RequestSpec good() {
  RequestSpec spec;
  spec.prompt = "a red circle";
  spec.width = spec.height = 64;
  spec.frames = 9;
  spec.steps = 4;
  spec.fps = 8;
  spec.guidance = 1.2;
  spec.max_text_tokens = 64;
  return spec;
}
}  // namespace

TEST_CASE("request: what does not suit the model is refused with the nearest good value", "[actors]") {
  auto model = compiler::open_model_folder(ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny");
  REQUIRE(model.ok());
  const auto& folder = model.value();
  CHECK(check_request(good(), folder).ok());
  const auto refused = [&](auto change) {
    auto spec = good();
    change(spec);
    const auto status = check_request(spec, folder);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::invalid_request);
    return status.error().text();
  };
  CHECK(refused([](auto& s) { s.width = 100; }) == "width 100 is not a multiple of 16 (use 96 or 112)");
  CHECK(refused([](auto& s) { s.height = 7; }) == "height 7 is not a multiple of 16 (use 16)");
  CHECK(refused([](auto& s) { s.frames = 10; }) == "frames 10 is not 8k+1 (use 9 or 17)");
  CHECK(refused([](auto& s) { s.frames = 0; }) == "frames 0 is not 8k+1 (use 1)");
  CHECK(refused([](auto& s) { s.frames = 129; }).find("at most 121") != std::string::npos);
  CHECK(refused([](auto& s) { s.width = 16 * 64; }).find("too large") != std::string::npos);
  refused([](auto& s) { s.prompt = " \n\t"; });
  refused([](auto& s) { s.prompt = std::string((1 << 20) + 1, 'a'); });
  refused([](auto& s) { s.steps = 0; });
  refused([](auto& s) { s.steps = 10'001; });
  refused([](auto& s) { s.guidance = std::numeric_limits<double>::quiet_NaN(); });
  refused([](auto& s) { s.fps = 0; });
  refused([](auto& s) { s.fps = std::numeric_limits<double>::infinity(); });
  refused([](auto& s) { s.max_text_tokens = 0; });
}
