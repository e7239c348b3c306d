// What follows from a benchmark's samples, and every form in which it is told.

#include <catch2/catch.hpp>

#include "launch/bench_compare.hpp"
#include "launch/bench_plot.hpp"
#include "launch/bench_result.hpp"

using namespace orrery;
using namespace orrery::launch;

namespace {

BenchRow row(const std::string& cards, std::vector<double> frames, const std::string& clock = "wall") {
  BenchRow made;
  made.name = "cards=" + cards;
  made.settings = {{"cards", cards}};
  made.clock = clock;
  made.host_cores = 2;
  made.size = std::stod(cards);
  made.nodes = made.cards = made.threads = static_cast<std::uint32_t>(std::stoul(cards));
  made.oversubscribed = made.threads > 2;
  made.frames = 9;
  made.steps = 4;
  made.work = 1e9;
  made.samples["frames_seconds"] = std::move(frames);
  made.digests = {"aa"};
  return made;
}

BenchResult result_of(std::vector<BenchRow> rows, topology::ScalingKind kind = topology::ScalingKind::strong) {
  BenchResult result;
  result.name = "test";
  result.state = "complete";
  result.scaling.emplace();
  result.scaling->kind = kind;
  result.rows = std::move(rows);
  result.derive();
  return result;
}

topology::ExperimentAssertion assertion(const std::string& text) { return topology::ExperimentAssertion::parse(text).value(); }

bool holds(BenchResult result, const std::string& text) {
  result.check({assertion(text)});
  return result.assertions_held();
}

}  // namespace

TEST_CASE("bench result: strong scaling compares with the fastest baseline of the same clock", "[launch][bench]") {
  auto slow = row("1", {20, 20, 20});
  slow.name = "cards=1 transport=tcp";
  slow.settings.emplace_back("transport", "tcp");
  const auto result = result_of({slow, row("1", {10, 10, 10}), row("2", {5, 5, 5}), row("4", {4, 4, 4}), row("1", {1}, "model"), row("2", {0.6}, "model")});
  CHECK(!result.rows[0].is_baseline);
  CHECK(result.rows[1].is_baseline);
  CHECK(result.rows[0].speedup->ratio == 0.5);
  CHECK(result.rows[2].speedup->ratio == 2);
  CHECK(*result.rows[2].efficiency == 1);
  CHECK(*result.rows[2].serial_fraction == Approx(0));
  CHECK(*result.rows[3].efficiency == Approx(2.5 / 4));
  CHECK(*result.rows[3].serial_fraction == Approx((1 / 2.5 - 1.0 / 4) / (1 - 1.0 / 4)));
  CHECK(result.rows[4].is_baseline);
  CHECK(result.rows[5].speedup->ratio == Approx(1 / 0.6));
}

TEST_CASE("bench result: weak scaling counts the work", "[launch][bench]") {
  auto twice = row("2", {11, 11, 11});
  twice.work = 2e9;
  twice.requests = 2;
  const auto result = result_of({row("1", {10, 10, 10}), twice}, topology::ScalingKind::weak);
  CHECK(result.rows[1].speedup->ratio == Approx(2 * 10.0 / 11));
  CHECK(*result.rows[1].efficiency == Approx(10.0 / 11));
}

TEST_CASE("bench result: assertions of one row and of every row", "[launch][bench]") {
  const auto result = result_of({row("1", {10, 10, 10}), row("2", {6, 6, 6})});
  CHECK(holds(result, "efficiency(cards=2) >= 0.8"));
  CHECK_FALSE(holds(result, "efficiency(cards=2) >= 0.9"));
  CHECK(holds(result, "speedup(cards=2) > 1.6 and efficiency(cards=1) == 1"));
  CHECK(holds(result, "frames_seconds <= 10 s"));
  CHECK_FALSE(holds(result, "frames_seconds < 10 s"));
  CHECK(holds(result, "output_sha256 is constant"));
  CHECK_FALSE(holds(result, "step_seconds < 1 s"));  // Not measured.
  auto twin = result;
  twin.rows.push_back(result.rows[1]);
  CHECK_FALSE(holds(twin, "efficiency(cards=2) >= 0.1"));  // Which one?
}

TEST_CASE("bench result: other bytes are noticed within a row, between rows, and not between different work", "[launch][bench]") {
  auto result = result_of({row("1", {1}), row("2", {1})});
  CHECK(result.digests_constant());
  result.rows[1].digests = {"bb"};
  CHECK_FALSE(result.digests_constant());
  CHECK(result.table().find("# output sha256 DIFFERS: aa, bb") != std::string::npos);
  result.rows[1].frames = 17;
  CHECK(result.digests_constant());
  result.rows[1].digests_differ = true;
  CHECK_FALSE(result.digests_constant());
  // The second request of a row has its own seed.
  auto requests = result_of({row("1", {1}), row("2", {1})});
  requests.rows[1].digests = {"aa", "cc"};
  CHECK(requests.digests_constant());
}

TEST_CASE("bench result: the table says clock, oversubscription and its formulas", "[launch][bench]") {
  auto one = row("1", {10, 10, 10});
  one.samples["step_seconds"] = {0.25, 0.25, 0.25};
  one.step_seconds = {0.25, 0.25, 0.25};
  one.comm_fraction = 0.125;
  one.peak_card_bytes = 3 << 20;
  one.bytes_per_step = 2.5e6;
  one.imbalance = 1.04;
  const auto result = result_of({one, row("4", {4, 4, 4})});
  CHECK(result.table() ==
        "nodes  cards  tp  sp  cfg  step_ms     p90  T_latents_s  T_frames_s  ci95%  speedup   eff  comm%  hidden%  imbal  MB/step  peak_MiB  runs  clock  oversub\n"
        "    1      1   1   1    1   250.00  250.00            -          10    0.0     1.00  1.00   12.5        -   1.04     2.50       3.0     3   wall       no\n"
        "    4      4   1   1    1        -       -            -           4    0.0     2.50  0.62      -        -      -        -         -     3   wall      yes\n"
        "\n"
        "# T: frames_seconds; p: cards; p0 = 1, of several such rows the fastest\n"
        "# strong scaling: speedup = T(p0) / T(p), eff = speedup * p0 / p\n"
        "# step_ms, p90: of all denoising steps; T: medians over runs; ci95%: half the bootstrap interval of the median\n"
        "# comm% = exposed exchange / (compute + exposed exchange) of the denoiser; hidden%: exchange behind compute, by all exchange\n"
        "# imbal = busiest card's compute / mean; MB/step: sent between processes, requests' other traffic included\n"
        "# clock wall: measured on 2 cores; oversub: more computing threads than that, so no statement about more hardware\n"
        "# output sha256 is constant: aa\n");
}

TEST_CASE("bench result: CSV has one line per row and quotes what needs it", "[launch][bench]") {
  auto one = row("1", {2, 2, 2});
  one.name = "a,\"b\"";
  const auto csv = result_of({one}).csv();
  CHECK(csv ==
        "name,clock,oversubscribed,host_cores,nodes,cards,threads,tensor,sequence,cfg,requests,frames,steps,speedup,efficiency,comm_fraction,hidden_fraction,"
        "imbalance,bytes_per_step,peak_card_bytes,frames_seconds_median,frames_seconds_p90,frames_seconds_min,frames_seconds_ci95_low,frames_seconds_ci95_high,"
        "frames_seconds_n,output_sha256\n"
        "\"a,\"\"b\"\"\",wall,false,2,1,1,1,1,1,1,1,9,4,1,1,,,,,,2,2,2,2,2,3,aa\n");
}

TEST_CASE("bench result: JSON carries every sample, clock and oversubscription, and is read back", "[launch][bench]") {
  auto result = result_of({row("1", {10, 11, 12}), row("4", {4, 4.5, 5})});
  result.environment = {{"cpu", "x"}, {"cores", 2}};
  const auto json = result.json();
  CHECK(json["state"] == "complete");
  CHECK(json["rows"][1]["clock"] == "wall");
  CHECK(json["rows"][1]["oversubscribed"] == true);
  CHECK(json["rows"][0]["summary"]["frames_seconds"]["median"] == 11.0);
  const auto read = bench_result_from_json(Json::parse(json.dump()), "r.json");
  REQUIRE(read.ok());
  CHECK(read.value().rows[1].samples.at("frames_seconds") == std::vector<double>{4, 4.5, 5});
  CHECK(read.value().metric == "frames_seconds");
  CHECK(bench_result_from_json(Json::parse("{}"), "r.json").error().message == "r.json: is not a benchmark's result");
  CHECK(bench_result_from_json(Json::parse(R"({"format": "orrery-bench/1", "rows": [{"name": "a", "clock": "wall", "samples": {"x": ["1"]}}]})"), "r.json")
            .error()
            .message == "r.json: a sample of 'x' is no number");
}

TEST_CASE("bench result: plots are the same bytes every time; measured points are filled, predicted hollow", "[launch][bench]") {
  const auto result = result_of({row("1", {10, 10.5, 11}), row("2", {6, 6.5, 7}), row("1", {9}, "model"), row("2", {5}, "model")});
  const auto plots = result.plots();
  REQUIRE(plots.size() == 3);
  CHECK(plots[0].first == "speedup.svg");
  CHECK(plots[0].second == result.plots()[0].second);
  CHECK(plots[0].second.find("stroke-dasharray") != std::string::npos);
  CHECK(plots[0].second.find("fill=\"#ffffff\" stroke=\"#1f5fa8\"") != std::string::npos);
  CHECK(plots[0].second.find("fill=\"#1f5fa8\" stroke=\"#1f5fa8\"") != std::string::npos);
  CHECK(plots[0].second.find("filled: measured, hollow: predicted") != std::string::npos);
  const auto report = result.markdown({"speedup.svg"});
  CHECK(report.find("![speedup.svg](plots/speedup.svg)") != std::string::npos);
}

TEST_CASE("plot: a small one, to the last byte", "[launch][bench]") {
  Plot plot{"a < b", "x", "y", false, {{"s & t", {{1, 1, Interval{0.5, 1.5}, true}, {2, 2, {}, false}}}}, {}};
  CHECK(svg_of(plot) ==
        R"svg(<svg xmlns="http://www.w3.org/2000/svg" width="640" height="420" viewBox="0 0 640 420" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="74" y="22" font-size="15" font-weight="bold">a &lt; b</text>
<line x1="74.00" y1="46" x2="74.00" y2="362" stroke="#dddddd"/><text x="74.00" y="380" text-anchor="middle">1</text>
<line x1="620.00" y1="46" x2="620.00" y2="362" stroke="#dddddd"/><text x="620.00" y="380" text-anchor="middle">2</text>
<line x1="74" y1="362.00" x2="620" y2="362.00" stroke="#dddddd"/><text x="66" y="366.00" text-anchor="end">0</text>
<line x1="74" y1="283.00" x2="620" y2="283.00" stroke="#dddddd"/><text x="66" y="287.00" text-anchor="end">0.5</text>
<line x1="74" y1="204.00" x2="620" y2="204.00" stroke="#dddddd"/><text x="66" y="208.00" text-anchor="end">1</text>
<line x1="74" y1="125.00" x2="620" y2="125.00" stroke="#dddddd"/><text x="66" y="129.00" text-anchor="end">1.5</text>
<line x1="74" y1="46.00" x2="620" y2="46.00" stroke="#dddddd"/><text x="66" y="50.00" text-anchor="end">2</text>
<rect x="74" y="46" width="546" height="316" fill="none" stroke="#333333"/>
<text x="347" y="404" text-anchor="middle">x</text>
<text transform="translate(20 204) rotate(-90)" text-anchor="middle">y</text>
<polyline points="74.00,204.00 620.00,46.00" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>
<line x1="74.00" y1="283.00" x2="74.00" y2="125.00" stroke="#1f5fa8"/><line x1="70.00" y1="283.00" x2="78.00" y2="283.00" stroke="#1f5fa8"/><line x1="70.00" y1="125.00" x2="78.00" y2="125.00" stroke="#1f5fa8"/><circle cx="74.00" cy="204.00" r="4" fill="#1f5fa8" stroke="#1f5fa8" stroke-width="1.5"/>
<circle cx="620.00" cy="46.00" r="4" fill="#ffffff" stroke="#1f5fa8" stroke-width="1.5"/>
<line x1="86" y1="60" x2="110" y2="60" stroke="#1f5fa8" stroke-width="1.5"/><text x="116" y="64">s &amp; t</text>
<text x="74" y="38" font-size="11" fill="#555555">filled: measured, hollow: predicted</text>
</svg>
)svg");
  // Nothing to draw is no crash, and no infinite axis.
  CHECK(svg_of({"", "", "", true, {}, {}}).find("inf") == std::string::npos);
  CHECK(svg_of({"", "", "", true, {{"", {{1, 1, Interval{0, 2}, true}}}}, {}}).find("nan") == std::string::npos);
}

TEST_CASE("compare: slower by more than the threshold, and surely, is worse", "[launch][bench]") {
  const auto a = result_of({row("1", {10, 10.1, 10.2, 9.9, 9.8})});
  const auto verdict = [&](const BenchResult& b, double threshold) {
    const auto compared = compare(a, b, "", threshold);
    REQUIRE(compared.ok());
    const auto& only = compared.value().rows.front();
    return std::string(only.worse ? "worse" : only.better ? "better" : "same");
  };
  CHECK(verdict(result_of({row("1", {12, 12.1, 11.9, 12.2, 11.8})}), 0.05) == "worse");
  CHECK(verdict(result_of({row("1", {12, 12.1, 11.9, 12.2, 11.8})}), 0.25) == "same");
  CHECK(verdict(result_of({row("1", {8, 8.1, 7.9, 8.2, 7.8})}), 0.05) == "better");
  CHECK(verdict(result_of({row("1", {10, 10.1, 10.2, 9.9, 9.8})}), 0) == "same");
  // Above the threshold, but the samples overlap too much to be sure.
  CHECK(verdict(result_of({row("1", {9, 9.5, 11, 12, 13})}), 0.05) == "same");
  // Too few to be sure of anything: the ratio decides.
  CHECK(verdict(result_of({row("1", {12, 12, 12})}), 0.05) == "worse");
}

TEST_CASE("compare: a prediction is no measurement, and strangers have nothing in common", "[launch][bench]") {
  const auto wall = result_of({row("1", {10, 10, 10})}), model = result_of({row("1", {10}, "model")}), other = result_of({row("2", {1})});
  CHECK(compare(wall, model, "", 0.05).error().code == ErrorCode::usage);
  CHECK(compare(wall, other, "", 0.05).error().message == "the two results have no configuration with samples of 'frames_seconds' in common");
  CHECK(compare(wall, wall, "step_seconds", 0.05).error().code == ErrorCode::usage);
  const auto predicted = compare(model, result_of({row("1", {11}, "model")}), "", 0.05);
  REQUIRE(predicted.ok());
  CHECK(predicted.value().worse());
  CHECK(!predicted.value().rows.front().p);
}

TEST_CASE("compare: a threshold is a part or a percentage", "[launch][bench]") {
  CHECK(threshold_of("5%").value() == 0.05);
  CHECK(threshold_of("0.1").value() == 0.1);
  for (const auto* text : {"", "%", "five", "-1%", "1e999", "5%%"}) CHECK(threshold_of(text).error().code == ErrorCode::usage);
}
