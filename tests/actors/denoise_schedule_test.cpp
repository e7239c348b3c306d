// - levels fall, the last step of "sigma_min" is a no-op, the last one of "zero" is not
// - v prediction turns the sign of c_out
// - counts and configurations that give no schedule are refused
// The numbers themselves are compared with the reference in tests/golden/scheduler_test.cpp.

#include "actors/denoise_schedule.hpp"

#include <catch2/catch.hpp>

#include <cmath>

using namespace orrery;
using actors::make_schedule;
using compiler::SchedulerConfig;

namespace {

double scalar_of(const cards::Scalars& scalars, cards::Scalar which) { return scalars[static_cast<std::size_t>(which)]; }

}  // namespace

TEST_CASE("denoise schedule: levels fall from sigma_max to sigma_min", "[actors][schedule]") {
  for (const auto kind : {SchedulerConfig::Schedule::karras, SchedulerConfig::Schedule::exponential})
    for (const std::uint32_t steps : {2U, 3U, 7U, 36U, 1000U}) {
      SchedulerConfig config;
      config.schedule = kind;
      const auto schedule = make_schedule(config, steps);
      REQUIRE(schedule.ok());
      REQUIRE(schedule.value().count() == steps);
      const auto& all = schedule.value().steps;
      CHECK(all.front().sigma == Approx(80).epsilon(1e-6));
      CHECK(all.back().sigma == Approx(0.002).epsilon(1e-6));
      for (std::uint32_t i = 0; i + 1 < steps; ++i) {
        CHECK(all[i].sigma_next == all[i + 1].sigma);
        CHECK(all[i].sigma_next < all[i].sigma);
      }
    }
}

TEST_CASE("denoise schedule: only the last step of final sigma_min is a no-op", "[actors][schedule]") {
  SchedulerConfig config;
  config.final_sigma = SchedulerConfig::FinalSigma::sigma_min;
  auto schedule = make_schedule(config, 36);
  REQUIRE(schedule.ok());
  CHECK(schedule.value().working_count() == 35);
  CHECK(schedule.value().steps[35].is_no_op());
  CHECK_FALSE(schedule.value().steps[34].is_no_op());

  config.final_sigma = SchedulerConfig::FinalSigma::zero;
  schedule = make_schedule(config, 36);
  REQUIRE(schedule.ok());
  CHECK(schedule.value().working_count() == 36);
  CHECK(schedule.value().steps[35].sigma_next == 0);
}

TEST_CASE("denoise schedule: scalars are the step's numbers, and v prediction turns c_out", "[actors][schedule]") {
  SchedulerConfig config;
  const auto schedule = make_schedule(config, 5);
  config.prediction = SchedulerConfig::Prediction::v_prediction;
  const auto turned = make_schedule(config, 5);
  REQUIRE((schedule.ok() && turned.ok()));
  for (std::uint32_t i = 0; i < 5; ++i) {
    const auto scalars = schedule.value().scalars(i, 7);
    const double sigma = scalar_of(scalars, cards::Scalar::sigma);
    CHECK(scalar_of(scalars, cards::Scalar::guidance) == 7);
    CHECK(scalar_of(scalars, cards::Scalar::sigma_max) == 80);
    CHECK(scalar_of(scalars, cards::Scalar::timestep) == Approx(std::log(sigma) / 4).epsilon(1e-6));
    CHECK(scalar_of(scalars, cards::Scalar::c_in) == Approx(1 / std::sqrt(sigma * sigma + 0.25)).epsilon(1e-6));
    CHECK(scalar_of(scalars, cards::Scalar::c_skip) == Approx(0.25 / (sigma * sigma + 0.25)).epsilon(1e-6));
    CHECK(scalar_of(scalars, cards::Scalar::c_out) == Approx(0.5 * sigma / std::sqrt(sigma * sigma + 0.25)).epsilon(1e-6));
    CHECK(turned.value().steps[i].c_out == -schedule.value().steps[i].c_out);
  }
}

TEST_CASE("denoise schedule: what gives no levels is refused", "[actors][schedule][fault]") {
  CHECK(make_schedule({}, 0).error().code == ErrorCode::invalid_request);
  CHECK(make_schedule({}, 10'001).error().code == ErrorCode::invalid_request);
  const auto refused = [](auto change) {
    SchedulerConfig config;
    change(config);
    const auto result = make_schedule(config, 4);
    return !result.ok() && result.error().code == ErrorCode::invalid_model;
  };
  CHECK(refused([](SchedulerConfig& c) { c.sigma_min = 0; }));
  CHECK(refused([](SchedulerConfig& c) { c.sigma_min = 90; }));
  CHECK(refused([](SchedulerConfig& c) { c.sigma_max = INFINITY; }));
  CHECK(refused([](SchedulerConfig& c) { c.sigma_max = 1e300; }));
  CHECK(refused([](SchedulerConfig& c) { c.sigma_min = 1e-60; }));
  CHECK(refused([](SchedulerConfig& c) { c.sigma_data = 0; }));
  CHECK(refused([](SchedulerConfig& c) { c.rho = 0; }));
  CHECK(refused([](SchedulerConfig& c) { c.rho = NAN; }));
}
