#include "launch/bench_result.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <set>

#include "base/units.hpp"
#include "base/yaml.hpp"
#include "launch/bench_plot.hpp"

namespace orrery::launch {

using topology::ScalingKind;

namespace {

template <class... Values>
std::string printed(const char* form, Values... values) {
  std::array<char, 128> text{};
  std::snprintf(text.data(), text.size(), form, values...);
  return text.data();
}

std::string in_percent(const std::optional<double>& part) { return part ? printed("%.1f", *part * 100) : "-"; }

const SampleSummary* find(const BenchRow& row, const std::string& metric) {
  const auto found = row.summaries.find(metric);
  return found == row.summaries.end() ? nullptr : &found->second;
}

std::string in_seconds(const SampleSummary* summary) { return summary == nullptr ? "-" : printed("%.4g", summary->median); }
std::string in_milliseconds(double seconds) { return printed(seconds < 1 ? "%.2f" : "%.1f", seconds * 1000); }

/// The axes that rows differ in beyond the columns that a table has anyway.
std::vector<std::string> further_axes(const std::vector<BenchRow>& rows) {
  std::vector<std::string> axes;
  for (const auto& row : rows)
    for (const auto& [axis, value] : row.settings)
      if (axis == "transport" && std::find(axes.begin(), axes.end(), axis) == axes.end()) axes.push_back(axis);
  return axes;
}

bool differ(const std::vector<BenchRow>& rows, std::uint32_t BenchRow::*member) {
  return std::any_of(rows.begin(), rows.end(), [&](const BenchRow& row) { return row.*member != rows.front().*member; });
}

struct Column {
  std::string name;
  std::function<std::string(const BenchRow&)> text;
};

std::vector<Column> columns_of(const BenchResult& result) {
  std::vector<Column> all;
  const auto number = [&](const char* name, std::uint32_t BenchRow::*member) {
    all.push_back({name, [member](const BenchRow& row) { return std::to_string(row.*member); }});
  };
  number("nodes", &BenchRow::nodes);
  number("cards", &BenchRow::cards);
  number("tp", &BenchRow::tensor);
  number("sp", &BenchRow::sequence);
  number("cfg", &BenchRow::cfg);
  for (const auto& axis : further_axes(result.rows))
    all.push_back({axis, [axis](const BenchRow& row) {
                     for (const auto& [name, value] : row.settings)
                       if (name == axis) return value;
                     return std::string("-");
                   }});
  if (differ(result.rows, &BenchRow::requests)) number("requests", &BenchRow::requests);
  if (differ(result.rows, &BenchRow::frames)) number("frames", &BenchRow::frames);
  all.push_back({"step_ms", [](const BenchRow& row) {
                   if (!row.step_seconds.empty()) return in_milliseconds(quantile_of(row.step_seconds, 0.5));
                   const auto* step = find(row, "step_seconds");
                   return step == nullptr ? std::string("-") : in_milliseconds(step->median);
                 }});
  all.push_back({"p90", [](const BenchRow& row) {
                   if (!row.step_seconds.empty()) return in_milliseconds(quantile_of(row.step_seconds, 0.9));
                   return std::string("-");
                 }});
  all.push_back({"T_latents_s", [](const BenchRow& row) { return in_seconds(find(row, "latents_seconds")); }});
  all.push_back({"T_frames_s", [](const BenchRow& row) { return in_seconds(find(row, "frames_seconds")); }});
  all.push_back({"ci95%", [compared = result.metric](const BenchRow& row) {
                   const auto* summary = find(row, compared);
                   return summary == nullptr || summary->count < 2 ? std::string("-") : printed("%.1f", summary->relative_ci() * 100);
                 }});
  if (result.scaling) {
    all.push_back({"speedup", [](const BenchRow& row) { return row.speedup ? printed("%.2f", row.speedup->ratio) : "-"; }});
    all.push_back({"eff", [](const BenchRow& row) { return row.efficiency ? printed("%.2f", *row.efficiency) : "-"; }});
  }
  all.push_back({"comm%", [](const BenchRow& row) { return in_percent(row.comm_fraction); }});
  all.push_back({"hidden%", [](const BenchRow& row) { return in_percent(row.hidden_fraction); }});
  all.push_back({"imbal", [](const BenchRow& row) { return row.imbalance ? printed("%.2f", *row.imbalance) : "-"; }});
  all.push_back({"MB/step", [](const BenchRow& row) { return row.bytes_per_step ? printed("%.2f", *row.bytes_per_step / 1e6) : "-"; }});
  all.push_back({"peak_MiB", [](const BenchRow& row) {
                   return row.peak_card_bytes ? printed("%.1f", static_cast<double>(*row.peak_card_bytes) / (1 << 20)) : "-";
                 }});
  all.push_back({"runs", [](const BenchRow& row) {
                   const auto* summary = row.summaries.empty() ? nullptr : &row.summaries.begin()->second;
                   return std::to_string(summary == nullptr || row.clock == "model" ? 0 : summary->count);
                 }});
  all.push_back({"clock", [](const BenchRow& row) { return row.clock; }});
  all.push_back({"oversub", [](const BenchRow& row) { return std::string(row.oversubscribed ? "yes" : "no"); }});
  return all;
}

/// What the numbers mean, for under the table.
std::vector<std::string> formulas_of(const BenchResult& result) {
  std::vector<std::string> lines;
  const bool measured = std::any_of(result.rows.begin(), result.rows.end(), [](const BenchRow& row) { return row.clock == "wall"; });
  if (result.scaling) {
    const auto& axis = result.scaling->over;
    lines.push_back("T: " + result.metric + "; p: " + axis + "; p0 = " + std::to_string(result.scaling->baseline) +
                    ", of several such rows the fastest");
    if (result.scaling->kind == ScalingKind::strong)
      lines.push_back("strong scaling: speedup = T(p0) / T(p), eff = speedup * p0 / p");
    else
      lines.push_back("weak scaling: speedup = (W(p) / W(p0)) * T(p0) / T(p), eff = speedup * p0 / p, W: floating-point operations of a run");
  }
  lines.push_back("step_ms, p90: of all denoising steps; T: medians over runs; ci95%: half the bootstrap interval of the median");
  lines.push_back("comm% = exposed exchange / (compute + exposed exchange) of the denoiser; hidden%: exchange behind compute, by all exchange");
  lines.push_back("imbal = busiest card's compute / mean; MB/step: sent between processes, requests' other traffic included");
  if (measured) {
    std::string cores;
    for (const auto& row : result.rows)
      if (row.clock == "wall") cores = std::to_string(row.host_cores);
    lines.push_back("clock wall: measured on " + cores + " cores; oversub: more computing threads than that, so no statement about more hardware");
  }
  if (std::any_of(result.rows.begin(), result.rows.end(), [](const BenchRow& row) { return row.clock == "model"; }))
    lines.push_back("clock model: the planner's prediction from card and link figures, nothing was run");
  return lines;
}

std::string short_digest(const BenchResult& result) {
  std::set<std::string> all;
  for (const auto& row : result.rows)
    if (!row.digests.empty()) all.insert(row.digests.front());
  if (all.empty()) return "";
  std::string text;
  for (const auto& each : all) text += (text.empty() ? "" : ", ") + each;
  return text;
}

OrderedJson json_of(const std::optional<double>& number) { return number ? OrderedJson(*number) : OrderedJson(nullptr); }

}  // namespace

std::string aligned(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) text += std::string(widths[i] - row[i].size(), ' ') + row[i] + (i + 1 < row.size() ? "  " : "\n");
  }
  return text;
}

void BenchResult::derive() {
  for (auto& row : rows) {
    row.summaries.clear();
    for (const auto& [which, values] : row.samples)
      if (!values.empty()) row.summaries[which] = summary_of(values);
    row.speedup.reset();
    row.efficiency.reset();
    row.serial_fraction.reset();
    row.is_baseline = false;
  }
  if (!scaling) return;
  for (const char* clock : {"wall", "model"}) {
    BenchRow* baseline = nullptr;
    for (auto& row : rows) {
      const auto* own = find(row, metric);
      if (row.clock != clock || own == nullptr || row.size != scaling->baseline) continue;
      if (baseline == nullptr || own->median < find(*baseline, metric)->median) baseline = &row;
    }
    if (baseline == nullptr) continue;
    baseline->is_baseline = true;
    for (auto& row : rows) {
      const auto* own = find(row, metric);
      if (row.clock != clock || own == nullptr || !(own->median > 0) || !(row.size > 0)) continue;
      auto ratio = ratio_of_medians(baseline->samples.at(metric), row.samples.at(metric));
      const auto work = scaling->kind == ScalingKind::weak && baseline->work > 0 && row.work > 0 ? row.work / baseline->work : 1.0;
      for (auto* part : {&ratio.ratio, &ratio.ci95.low, &ratio.ci95.high}) *part *= work;
      // The baseline by itself is 1, whatever its spread.
      if (&row == baseline) ratio = {1, {1, 1}};
      const auto p = row.size / baseline->size;
      row.speedup = ratio;
      row.efficiency = ratio.ratio / p;
      row.efficiency_ci95 = {ratio.ci95.low / p, ratio.ci95.high / p};
      if (scaling->kind == ScalingKind::strong && p > 1 && ratio.ratio > 0) row.serial_fraction = (1 / ratio.ratio - 1 / p) / (1 - 1 / p);
    }
  }
}

bool BenchResult::digests_constant() const {
  std::map<std::string, std::string> known;  // By what was done.
  for (const auto& row : rows) {
    if (row.digests_differ) return false;
    for (std::size_t i = 0; i < row.digests.size(); ++i) {
      const auto key = std::to_string(row.frames) + "/" + std::to_string(i);
      const auto [at, fresh] = known.emplace(key, row.digests[i]);
      if (!fresh && at->second != row.digests[i]) return false;
    }
  }
  return true;
}

void BenchResult::check(const std::vector<topology::ExperimentAssertion>& wanted) {
  assertions.clear();
  using topology::Measured;
  const auto measured = [](const BenchRow& row) {
    std::map<std::string, Measured> values;
    for (const auto& [which, summary] : row.summaries) values[which] = summary.median;
    const auto add = [&](const char* which, const std::optional<double>& value) {
      if (value) values[which] = *value;
    };
    if (row.speedup) values["speedup"] = row.speedup->ratio;
    add("efficiency", row.efficiency);
    add("comm_fraction", row.comm_fraction);
    add("imbalance", row.imbalance);
    add("bytes_per_step", row.bytes_per_step);
    if (row.peak_card_bytes) values["peak_card_bytes"] = static_cast<double>(*row.peak_card_bytes);
    if (!row.digests.empty()) values["output_sha256"] = row.digests.front();
    return values;
  };
  for (const auto& one : wanted) {
    BenchAssertion done{one.text(), "", true};
    if (!one.constant().empty()) {
      if (one.constant() == "output_sha256") {
        done.held = digests_constant() && std::any_of(rows.begin(), rows.end(), [](const BenchRow& row) { return !row.digests.empty(); });
        done.shown = done.held ? short_digest(*this).substr(0, 16) : "differs: " + short_digest(*this);
      } else {
        std::set<Measured> all;
        for (const auto& row : rows)
          if (const auto values = measured(row); values.contains(one.constant())) all.insert(values.at(one.constant()));
        done.held = all.size() == 1;
        done.shown = std::to_string(all.size()) + " different values";
      }
      assertions.push_back(std::move(done));
      continue;
    }
    std::map<std::string, Measured> called;
    for (const auto& call : one.calls()) {
      std::vector<const BenchRow*> met;
      for (const auto& row : rows)
        if (std::all_of(call.where.begin(), call.where.end(), [&](const auto& setting) {
              return std::find(row.settings.begin(), row.settings.end(), setting) != row.settings.end();
            }))
          met.push_back(&row);
      if (met.size() != 1) {
        done.held = false;
        done.shown = call.metric + ": " + std::to_string(met.size()) + " configurations fit, name one";
        break;
      }
      const auto values = measured(*met.front());
      if (const auto found = values.find(call.metric); found != values.end()) called[call.name] = found->second;
    }
    if (!done.shown.empty()) {
      assertions.push_back(std::move(done));
      continue;
    }
    const bool every_row = !one.plain_names().empty();
    const auto shown_values = [&](const std::map<std::string, Measured>& values) {
      auto text = one.expectation()->shown_values(values);
      for (const auto& call : one.calls())
        if (const auto at = text.find(call.name + " = "); at != std::string::npos) text.replace(at, call.name.size(), call.text);
      return text;
    };
    for (const auto& row : rows) {
      auto values = every_row ? measured(row) : std::map<std::string, Measured>{};
      values.insert(called.begin(), called.end());
      const auto held = one.expectation()->evaluate(values);
      if (held.ok() && held.value() && done.held) {
        if (!every_row) done.shown = shown_values(values);
        if (!every_row) break;
        continue;
      }
      done.held = false;
      done.shown = (every_row ? row.name + ": " : "") + shown_values(values);
      break;
    }
    if (rows.empty()) done.held = false;
    assertions.push_back(std::move(done));
  }
}

bool BenchResult::assertions_held() const {
  return std::all_of(assertions.begin(), assertions.end(), [](const BenchAssertion& each) { return each.held; });
}

OrderedJson BenchResult::json() const {
  OrderedJson all{{"format", "orrery-bench/1"}, {"name", name}, {"state", state}, {"metric", metric}};
  if (scaling)
    all["scaling"] = {{"kind", name_of(scaling->kind)}, {"over", scaling->over}, {"baseline", scaling->baseline}};
  all["warnings"] = warnings;
  all["formulas"] = formulas_of(*this);
  all["rows"] = OrderedJson::array();
  for (const auto& row : rows) {
    OrderedJson one{{"name", row.name}};
    one["settings"] = OrderedJson::object();
    for (const auto& [axis, value] : row.settings) one["settings"][axis] = value;
    one["clock"] = row.clock;
    one["host_cores"] = row.host_cores;
    one["oversubscribed"] = row.oversubscribed;
    one["nodes"] = row.nodes;
    one["cards"] = row.cards;
    one["threads"] = row.threads;
    one["tensor"] = row.tensor;
    one["sequence"] = row.sequence;
    one["cfg"] = row.cfg;
    one["requests"] = row.requests;
    one["frames"] = row.frames;
    one["steps"] = row.steps;
    one["size"] = row.size;
    one["work_flop"] = row.work;
    if (!row.transport.empty()) one["transport"] = row.transport;
    if (!row.note.empty()) one["note"] = row.note;
    one["warmup_runs"] = row.warmup_runs;
    one["summary"] = OrderedJson::object();
    for (const auto& [name_of_metric, summary] : row.summaries)
      one["summary"][name_of_metric] = {{"median", summary.median}, {"p90", summary.p90}, {"min", summary.min}, {"n", summary.count},
                                        {"ci95", {summary.ci95.low, summary.ci95.high}}};
    if (row.speedup) {
      one["speedup"] = row.speedup->ratio;
      one["speedup_ci95"] = {row.speedup->ci95.low, row.speedup->ci95.high};
      one["efficiency"] = json_of(row.efficiency);
      one["efficiency_ci95"] = {row.efficiency_ci95.low, row.efficiency_ci95.high};
      one["serial_fraction"] = json_of(row.serial_fraction);
      one["is_baseline"] = row.is_baseline;
    }
    one["comm_fraction"] = json_of(row.comm_fraction);
    one["hidden_fraction"] = json_of(row.hidden_fraction);
    one["stall_fraction"] = json_of(row.stall_fraction);
    one["imbalance"] = json_of(row.imbalance);
    one["bytes_per_step"] = json_of(row.bytes_per_step);
    one["peak_card_bytes"] = row.peak_card_bytes ? OrderedJson(*row.peak_card_bytes) : OrderedJson(nullptr);
    one["predicted_step_seconds"] = json_of(row.predicted_step_seconds);
    one["output_sha256"] = row.digests;
    one["output_constant"] = !row.digests_differ;
    one["samples"] = row.samples;
    one["step_samples"] = row.step_seconds;
    all["rows"].push_back(std::move(one));
  }
  all["assertions"] = OrderedJson::array();
  for (const auto& each : assertions) all["assertions"].push_back({{"text", each.text}, {"held", each.held}, {"values", each.shown}});
  all["environment"] = environment;
  return all;
}

std::string BenchResult::table() const {
  std::string text;
  if (!rows.empty()) {
    const auto columns = columns_of(*this);
    std::vector<std::vector<std::string>> cells(1);
    for (const auto& column : columns) cells[0].push_back(column.name);
    for (const auto& row : rows) {
      cells.emplace_back();
      for (const auto& column : columns) cells.back().push_back(column.text(row));
    }
    text += aligned(cells);
  }
  for (const auto& row : rows)
    if (!row.note.empty()) text += "  " + row.name + ": " + row.note + "\n";
  text += "\n";
  for (const auto& line : formulas_of(*this)) text += "# " + line + "\n";
  if (const auto digest = short_digest(*this); !digest.empty())
    text += std::string("# output sha256 ") + (digests_constant() ? "is constant: " : "DIFFERS: ") + digest + "\n";
  if (!assertions.empty()) text += "\n";
  for (const auto& each : assertions) text += std::string(each.held ? "  ok    " : "  FAILS ") + each.text + "   (" + each.shown + ")\n";
  return text;
}

std::string BenchResult::csv() const {
  std::string text;
  const auto add = [&](const std::string& cell, bool last = false) {
    const bool quoted = cell.find_first_of(",\"\n") != std::string::npos;
    if (quoted) {
      std::string safe;
      for (const char c : cell) safe += c == '"' ? std::string("\"\"") : std::string(1, c);
      text += "\"" + safe + "\"";
    } else {
      text += cell;
    }
    text += last ? "\n" : ",";
  };
  std::set<std::string> metrics;
  for (const auto& row : rows)
    for (const auto& [metric_name, summary] : row.summaries) metrics.insert(metric_name);
  for (const auto* head : {"name", "clock", "oversubscribed", "host_cores", "nodes", "cards", "threads", "tensor", "sequence", "cfg", "requests", "frames",
                           "steps", "speedup", "efficiency", "comm_fraction", "hidden_fraction", "imbalance", "bytes_per_step", "peak_card_bytes"})
    add(head);
  for (const auto& each : metrics)
    for (const auto* part : {"_median", "_p90", "_min", "_ci95_low", "_ci95_high", "_n"}) add(each + part);
  add("output_sha256", true);
  const auto number = [](const std::optional<double>& value) { return value ? printed("%.9g", *value) : std::string(); };
  for (const auto& row : rows) {
    add(row.name);
    add(row.clock);
    add(row.oversubscribed ? "true" : "false");
    for (const auto value : {row.host_cores, row.nodes, row.cards, row.threads, row.tensor, row.sequence, row.cfg, row.requests, row.frames, row.steps})
      add(std::to_string(value));
    add(row.speedup ? number(row.speedup->ratio) : "");
    add(number(row.efficiency));
    add(number(row.comm_fraction));
    add(number(row.hidden_fraction));
    add(number(row.imbalance));
    add(number(row.bytes_per_step));
    add(row.peak_card_bytes ? std::to_string(*row.peak_card_bytes) : "");
    for (const auto& each : metrics) {
      const auto* summary = find(row, each);
      for (const auto value : summary == nullptr ? std::vector<double>{}
                                                 : std::vector<double>{summary->median, summary->p90, summary->min, summary->ci95.low, summary->ci95.high})
        add(number(value));
      if (summary == nullptr) text += ",,,,,";
      add(summary == nullptr ? "" : std::to_string(summary->count));
    }
    std::string digests;
    for (const auto& digest : row.digests) digests += (digests.empty() ? "" : " ") + digest;
    add(digests, true);
  }
  return text;
}

std::string BenchResult::markdown(const std::vector<std::string>& plot_files) const {
  std::string text = "# " + name + "\n\n";
  if (state != "complete") text += "**Interrupted**: what was measured until then.\n\n";
  for (const auto& warning : warnings) text += "> " + warning + "\n";
  if (!warnings.empty()) text += "\n";
  const auto add_row = [&](const std::vector<std::string>& cells) {
    for (const auto& cell : cells) text += "| " + cell + " ";
    text += "|\n";
  };
  const auto columns = columns_of(*this);
  std::vector<std::string> cells, rule;
  for (const auto& column : columns) {
    cells.push_back(column.name);
    rule.emplace_back("--:");
  }
  if (!rows.empty()) {
    add_row(cells);
    add_row(rule);
  }
  for (const auto& row : rows) {
    cells.clear();
    for (const auto& column : columns) cells.push_back(column.text(row));
    add_row(cells);
  }
  text += "\n";
  for (const auto& row : rows)
    if (!row.note.empty()) text += "- " + row.name + ": " + row.note + "\n";
  for (const auto& line : formulas_of(*this)) text += "- " + line + "\n";
  if (const auto digest = short_digest(*this); !digest.empty())
    text += std::string("- output sha256 ") + (digests_constant() ? "is constant: " : "**differs**: ") + digest + "\n";

  const bool both = std::any_of(rows.begin(), rows.end(), [](const BenchRow& row) {
    return row.clock == "wall" && row.predicted_step_seconds && !row.step_seconds.empty();
  });
  if (both) {
    text += "\n## Measured and predicted step\n\n";
    add_row({"configuration", "measured ms", "predicted ms", "measured / predicted"});
    add_row({"---", "--:", "--:", "--:"});
    for (const auto& row : rows) {
      if (row.clock != "wall" || !row.predicted_step_seconds || row.step_seconds.empty()) continue;
      const auto step = quantile_of(row.step_seconds, 0.5);
      add_row({row.name, in_milliseconds(step), in_milliseconds(*row.predicted_step_seconds), printed("%.2f", step / *row.predicted_step_seconds)});
    }
  }
  if (!assertions.empty()) text += "\n## Assertions\n\n";
  for (const auto& each : assertions) text += std::string("- ") + (each.held ? "ok" : "**fails**") + ": `" + each.text + "` (" + each.shown + ")\n";
  if (!plot_files.empty()) text += "\n";
  for (const auto& file : plot_files) text += "![" + file + "](plots/" + file + ")\n";
  if (environment.is_object() && !environment.empty()) {
    text += "\n## Machine\n\n";
    for (const auto& [key, value] : environment.items()) text += "- " + key + ": " + (value.is_string() ? value.get<std::string>() : value.dump()) + "\n";
  }
  return text;
}

std::vector<std::pair<std::string, std::string>> BenchResult::plots() const {
  std::vector<std::pair<std::string, std::string>> all;
  if (!scaling) return all;
  // One line for each combination of the other settings.
  const auto series_of = [&](const std::function<std::optional<PlotPoint>(const BenchRow&)>& point_of) {
    std::vector<PlotSeries> lines;
    for (const auto& row : rows) {
      const auto point = point_of(row);
      if (!point) continue;
      std::string rest;
      for (const auto& [axis, value] : row.settings)
        if (axis != scaling->over) rest += (rest.empty() ? "" : " ") + axis + "=" + value;
      if (rest.empty()) rest = name;
      auto found = std::find_if(lines.begin(), lines.end(), [&](const PlotSeries& one) { return one.name == rest; });
      if (found == lines.end()) found = lines.insert(lines.end(), PlotSeries{rest, {}});
      found->points.push_back(*point);
      found->points.back().measured = row.clock == "wall";
    }
    return lines;
  };
  std::set<double> sizes;
  for (const auto& row : rows)
    if (row.speedup) sizes.insert(row.size);
  if (sizes.empty()) return all;
  const auto title = name + " (" + std::string(name_of(scaling->kind)) + " scaling)";
  Plot speedup{title, scaling->over, "speed-up of " + metric, true, {}, {}};
  Plot efficiency{title, scaling->over, "efficiency", false, {}, {}};
  for (const auto size : sizes) {
    speedup.ideal.push_back({size, size / scaling->baseline, {}, true});
    efficiency.ideal.push_back({size, 1, {}, true});
  }
  // Lines begin at the baseline that they are compared with, also where it is another line's.
  const auto from_baseline = [&](std::vector<PlotSeries> lines) {
    std::erase_if(lines, [&](const PlotSeries& one) { return lines.size() > 1 && one.points.size() == 1 && one.points.front().x == scaling->baseline; });
    for (auto& line : lines)
      if (std::none_of(line.points.begin(), line.points.end(), [&](const PlotPoint& one) { return one.x == scaling->baseline; }))
        line.points.insert(line.points.begin(), PlotPoint{static_cast<double>(scaling->baseline), 1, {}, line.points.front().measured});
    return lines;
  };
  speedup.series = from_baseline(series_of([](const BenchRow& row) -> std::optional<PlotPoint> {
    if (!row.speedup) return std::nullopt;
    return PlotPoint{row.size, row.speedup->ratio, row.clock == "wall" ? std::optional(row.speedup->ci95) : std::nullopt, true};
  }));
  efficiency.series = from_baseline(series_of([](const BenchRow& row) -> std::optional<PlotPoint> {
    if (!row.efficiency) return std::nullopt;
    return PlotPoint{row.size, *row.efficiency, row.clock == "wall" ? std::optional(row.efficiency_ci95) : std::nullopt, true};
  }));
  Plot time{title, scaling->over, metric + " [s]", true, {}, {}};
  time.series = series_of([&](const BenchRow& row) -> std::optional<PlotPoint> {
    const auto* own = find(row, metric);
    if (own == nullptr) return std::nullopt;
    return PlotPoint{row.size, own->median, own->count > 1 ? std::optional(own->ci95) : std::nullopt, true};
  });
  all.emplace_back("speedup.svg", svg_of(speedup));
  all.emplace_back("efficiency.svg", svg_of(efficiency));
  all.emplace_back("time.svg", svg_of(time));
  return all;
}

Result<BenchResult> bench_result_from_json(const Json& json, const std::string& place) {
  const auto wrong = [&](const std::string& what) {
    return Error{ErrorCode::invalid_config, place + ": " + what, "it should be a result.json that `orrery bench` wrote"};
  };
  if (!json.is_object() || json.value("format", Json()) != Json("orrery-bench/1")) return wrong("is not a benchmark's result");
  const auto text_in = [](const Json& from, const char* key) {
    const auto found = from.find(key);
    return found != from.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  BenchResult result;
  result.name = text_in(json, "name");
  result.state = text_in(json, "state");
  result.metric = text_in(json, "metric");
  if (json.contains("environment")) result.environment = OrderedJson::parse(json["environment"].dump());
  if (!json.contains("rows") || !json["rows"].is_array()) return wrong("has no rows");
  for (const auto& one : json["rows"]) {
    BenchRow row;
    if (!one.is_object()) return wrong("has a row that is no object");
    row.name = text_in(one, "name");
    row.clock = text_in(one, "clock");
    if (row.name.empty() || (row.clock != "wall" && row.clock != "model")) return wrong("has a row without name or clock");
    if (one.contains("samples") && one["samples"].is_object())
      for (const auto& [metric, values] : one["samples"].items()) {
        if (!values.is_array()) return wrong("samples of '" + shown(metric) + "' are no list");
        for (const auto& value : values) {
          if (!value.is_number()) return wrong("a sample of '" + shown(metric) + "' is no number");
          row.samples[metric].push_back(value.get<double>());
        }
      }
    result.rows.push_back(std::move(row));
  }
  result.derive();
  return result;
}

}  // namespace orrery::launch
