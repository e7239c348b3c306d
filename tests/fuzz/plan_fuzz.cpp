// Plans made of any JSON, as from another process: refused with a reason, or usable and the same when written again.

#include "tests/fuzz/input.hpp"
#include "topology/config_set.hpp"
#include "topology/model_demand.hpp"
#include "topology/plan_text.hpp"
#include "topology/planner.hpp"

namespace {

using namespace orrery;
using namespace orrery::topology;

void make_corpus(const std::string& folder) {
  const std::string configs = std::string(ORRERY_SOURCE_DIR) + "/configs";
  for (const std::string name : {"demo", "tensor", "sequence", "cfg"}) {
    const auto set = ConfigSet::read({{configs + "/deployments/" + name + ".yaml"}, {}, configs, [](const std::string&) { return std::nullopt; }});
    const auto resolved = set.resolve().value();
    const auto plan = make_plan(resolved.cluster, resolved.deployment, demand_of(resolved.model, shape_of(resolved.model.defaults)).value());
    fuzz::write_seed(folder, name, json_of(plan.value()).dump());
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return fuzz::initialize(make_corpus); }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto json = parse_json({reinterpret_cast<const char*>(data), size}, "plan");
  if (!json.ok()) return 0;
  const auto plan = plan_from_json(json.value());
  if (!plan.ok()) {
    ORRERY_CHECK(!plan.error().message.empty());
    return 0;
  }
  (void)text_of(plan.value(), true);
  (void)yaml_of(plan.value());
  const auto again = plan_from_json(parse_json(json_of(plan.value()).dump(), "plan").value());
  ORRERY_CHECK(again.ok() && again.value().digest() == plan.value().digest());
  return 0;
}
