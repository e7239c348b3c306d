#include "topology/card_profile.hpp"

namespace orrery::topology {

std::string_view name_of(Backend backend) {
  switch (backend) {
    case Backend::cpu: return "cpu";
    case Backend::model: return "model";
    case Backend::null: return "null";
  }
  return "null";
}

double CardProfile::compute_of(const std::string& dtype) const {
  if (const auto found = compute.find(dtype); found != compute.end()) return found->second;
  if (compute.empty()) return 1;
  return dtype == "float32" ? compute.begin()->second / 2 : compute.begin()->second;
}

const Schema<CardProfile>& card_profile_schema() {
  static const Schema<Efficiency> efficiency =
      Schema<Efficiency>("efficiency", "Part of the named compute rate that is reached in practice.")
          .field("linear", &Efficiency::linear, number(0.001, 1), "Matrix products.", {.example = "0.53"})
          .field("attention", &Efficiency::attention, number(0.001, 1), "Attention scores and values.",
                 {.example = "0.45"});
  static const Schema<CardProfile> schema =
      Schema<CardProfile>("card type",
                          "A type of card: `kind: CardProfile`, or an entry of `card_types` in a cluster.")
          .field("memory", &CardProfile::memory, bytes(), "Card memory, a hard budget.",
                 {.required = true,
                  .check = [](const std::uint64_t& n) { return n > 0 ? "" : "should be more than 0 B"; }})
          .field("compute", &CardProfile::compute, map_of(flops(), "dtype"),
                 "Peak rate per dtype: `float32`, `bfloat16`.",
                 {.required = true,
                  .example = "{bfloat16: 128 TFLOP/s}",
                  .check = [](const std::map<std::string, double>& rates) -> std::string {
                    if (rates.empty()) return "should name at least one dtype";
                    for (const auto& [dtype, rate] : rates) {
                      if (dtype != "float32" && dtype != "bfloat16")
                        return "has the unknown dtype '" + shown(dtype) + "'; known: float32, bfloat16";
                      if (rate <= 0) return "should be more than 0 for " + dtype;
                    }
                    return "";
                  }})
          .field("memory_bandwidth", &CardProfile::memory_bandwidth, bytes_per_second(),
                 "Between the card's memory and its engines.",
                 {.required = true,
                  .check = [](const double& rate) { return rate > 0 ? "" : "should be more than 0"; }})
          .field("host_bandwidth", &CardProfile::host_bandwidth, bytes_per_second(),
                 "From host memory into the card, for weights.", {.example = "50 GB/s", .standard = "not limited"})
          .field("backend", &CardProfile::backend,
                 choice<Backend>({{"cpu", Backend::cpu}, {"model", Backend::model}, {"null", Backend::null}}),
                 "`cpu`: real arithmetic on the host's cores; `model`: virtual time from this profile; `null`: a "
                 "driver skeleton.")
          .field("threads", &CardProfile::threads, whole<std::uint32_t>(1, 256),
                 "Threads of one card of backend `cpu`.")
          .field("efficiency", &CardProfile::efficiency, object(efficiency), "What is reached of `compute`.",
                 {.standard = "all of it"});
  return schema;
}

}  // namespace orrery::topology
