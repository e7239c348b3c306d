#include "topology/experiment_spec.hpp"

#include <algorithm>
#include <set>

#include "topology/model_spec.hpp"

namespace orrery::topology {
namespace {

constexpr std::size_t point_count_max = 256;

using Degree = std::optional<std::uint32_t>;

/// The file's matrix: values by axis.
struct Matrix {
  std::vector<std::uint32_t> nodes, cards;
  std::vector<Degree> tensor, sequence, cfg;
  std::vector<DataTransport> transport;
};

/// One entry of `exclude`.
struct Exclusion {
  std::optional<std::uint32_t> nodes, cards;
  std::optional<Degree> tensor, sequence, cfg;
  std::optional<DataTransport> transport;
};

struct ExperimentFile {
  std::string deployment;
  ExperimentClock clock = ExperimentClock::wall;
  std::optional<ExperimentScaling> scaling;
  Matrix matrix;
  std::vector<Exclusion> exclude;
  ExperimentWorkload workload;
  ExperimentRepeat repeat;
  std::vector<ExperimentAssertion> assertions;
  ExperimentReport report;
};

std::string text_of(std::uint32_t number) { return std::to_string(number); }
std::string text_of(const Degree& degree) { return degree ? std::to_string(*degree) : "auto"; }
std::string text_of(DataTransport transport) { return std::string(name_of(transport)); }

template <class T>
std::vector<std::string> texts_of(const std::vector<T>& values) {
  std::vector<std::string> all;
  for (const auto& value : values) all.push_back(text_of(value));
  return all;
}

/// In the order of experiment_axes().
std::vector<std::vector<std::string>> values_of(const Matrix& matrix) {
  return {texts_of(matrix.nodes),    texts_of(matrix.cards), texts_of(matrix.tensor),
          texts_of(matrix.sequence), texts_of(matrix.cfg),   texts_of(matrix.transport)};
}

bool is_excluded(const ExperimentPoint& point, const Exclusion& exclusion) {
  const auto fits = [&](const char* axis, const auto& wanted) {
    if (!wanted) return true;
    const auto* value = point.value(axis);
    return value != nullptr && *value == text_of(*wanted);
  };
  return fits("nodes", exclusion.nodes) && fits("cards", exclusion.cards) && fits("parallelism.tensor", exclusion.tensor) &&
         fits("parallelism.sequence", exclusion.sequence) && fits("parallelism.cfg", exclusion.cfg) &&
         fits("transport", exclusion.transport);
}

const std::vector<std::pair<std::string, ExperimentTime>> times = {
    {"step_seconds", ExperimentTime::step}, {"latents_seconds", ExperimentTime::latents}, {"frames_seconds", ExperimentTime::frames}};

/// "tensor" for "parallelism.tensor"; empty for what is no axis.
std::string axis_named(const std::string& word) {
  for (const auto& axis : experiment_axes())
    if (axis == word || axis == "parallelism." + word) return axis;
  return "";
}

Value<ExperimentAssertion> assertion() {
  Value<ExperimentAssertion> value;
  value.type = "comparison, e.g. `efficiency(cards=2) >= 0.9`, or `output_sha256 is constant`";
  value.json = {{"type", "string"}};
  value.text = [](const ExperimentAssertion& one) { return one.text(); };
  value.read = [plain = text()](const YamlNode& node, const std::string& path, ExperimentAssertion& into, YamlReader& reader) {
    std::string given;
    if (!plain.read(node, path, given, reader)) return false;
    auto parsed = ExperimentAssertion::parse(given);
    if (!parsed.ok()) {
      reader.complain(node, "E112", path, parsed.error().message, "e.g. 'efficiency(cards=2) >= 0.9' or 'output_sha256 is constant'");
      return false;
    }
    into = std::move(parsed).value();
    std::vector<std::string> known;
    for (const auto& metric : experiment_metrics()) known.push_back(metric.name);
    auto names = into.plain_names();
    if (!into.constant().empty()) names.push_back(into.constant());
    for (const auto& call : into.calls()) names.push_back(call.metric);
    bool good = true;
    for (const auto& name : names) {
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      reader.complain(node, "E112", path, "asks for the unknown '" + shown(name) + "'", suggestion(name, known));
      good = false;
    }
    return good;
  };
  return value;
}

Value<std::optional<ExperimentUntil>> until_value(const Schema<ExperimentUntil>& schema) {
  const auto inner = object(schema);
  Value<std::optional<ExperimentUntil>> value;
  value.type = inner.type;
  value.json = inner.json;
  value.pages = inner.pages;
  value.read = [inner](const YamlNode& node, const std::string& path, std::optional<ExperimentUntil>& into, YamlReader& reader) {
    return inner.read(node, path, into.emplace(), reader);
  };
  return value;
}

const Schema<ExperimentFile>& experiment_schema() {
  const auto degree = auto_or(whole<std::uint32_t>(1, 256));
  const auto many = whole<std::uint32_t>(1, 65'536);
  const auto transport = choice<DataTransport>({{"auto", DataTransport::automatic},
                                                {"inproc", DataTransport::inproc},
                                                {"shm", DataTransport::shm},
                                                {"ipc", DataTransport::ipc},
                                                {"tcp", DataTransport::tcp}});
  static const Schema<ExperimentScaling> scaling =
      Schema<ExperimentScaling>("scaling", "What speed-up and efficiency are computed of.")
          .field("kind", &ExperimentScaling::kind, choice<ScalingKind>({{"strong", ScalingKind::strong}, {"weak", ScalingKind::weak}}),
                 "`strong`: the same work on more cards. `weak`: the work grows with them.")
          .field("over", &ExperimentScaling::over, text(), "The axis of the matrix that counts as the size.",
                 {.example = "cards", .check = [](const std::string& axis) {
                    if (axis == "transport") return std::string("should be an axis that is a number");
                    return axis_named(axis) == axis ? std::string() : "should be an axis of the matrix, such as cards or parallelism.tensor";
                  }})
          .field("baseline", &ExperimentScaling::baseline, many,
                 "The size that everything is compared with; of several such configurations the fastest.")
          .optional("grow", &ExperimentScaling::grow,
                    choice<ScalingGrowth>({{"requests", ScalingGrowth::requests}, {"num_frames", ScalingGrowth::num_frames}}),
                    "Weak scaling: what is multiplied by size / baseline. `num_frames`: the latent frames, (frames - 1) / 8 + 1.",
                    {.standard = "none"})
          .field("metric", &ExperimentScaling::metric, choice<ExperimentTime>(times), "The time that is compared.");
  static const Schema<Matrix> matrix =
      Schema<Matrix>("matrix", "The configurations: every combination of these values. An axis that is left out stays as the deployment has it.")
          .field("nodes", &Matrix::nodes, one_or_list_of(many, 64), "The first nodes of the cluster.", {.example = "[1, 2]", .standard = "as many as the cards need"})
          .field("cards", &Matrix::cards, one_or_list_of(many, 64), "Cards, spread evenly over the nodes; without `nodes` the first ones.",
                 {.example = "[1, 2, 4]", .standard = "all"})
          .field("parallelism.tensor", &Matrix::tensor, one_or_list_of(degree, 64), "Cards in a tensor group.", {.example = "[auto, 2]", .standard = "as deployed"})
          .field("parallelism.sequence", &Matrix::sequence, one_or_list_of(degree, 64), "Cards in a sequence group.", {.standard = "as deployed"})
          .field("parallelism.cfg", &Matrix::cfg, one_or_list_of(auto_or(whole<std::uint32_t>(1, 2)), 8), "Guidance branches apart.", {.standard = "as deployed"})
          .field("transport", &Matrix::transport, one_or_list_of(transport, 8), "`data.transport` of the cluster.", {.example = "[auto, tcp]", .standard = "as deployed"});
  static const Schema<Exclusion> exclude =
      Schema<Exclusion>("exclude", "A configuration that has all these values is left out.")
          .optional("nodes", &Exclusion::nodes, many, "Nodes.", {.standard = "any"})
          .optional("cards", &Exclusion::cards, many, "Cards.", {.standard = "any"})
          .optional("parallelism.tensor", &Exclusion::tensor, degree, "Tensor degree.", {.standard = "any"})
          .optional("parallelism.sequence", &Exclusion::sequence, degree, "Sequence degree.", {.standard = "any"})
          .optional("parallelism.cfg", &Exclusion::cfg, degree, "Guidance degree.", {.standard = "any"})
          .optional("transport", &Exclusion::transport, transport, "Transport.", {.standard = "any"});
  static const Schema<ScenarioRequest> request =
      Schema<ScenarioRequest>("experiment request", "What each request asks for; the rest is the model's default.")
          .field("prompt", &ScenarioRequest::prompt, text(), "What the video shows.")
          .optional("negative_prompt", &ScenarioRequest::negative_prompt, text(), "What it should not show.")
          .optional("num_inference_steps", &ScenarioRequest::num_inference_steps, whole<std::uint32_t>(1, 1000), "Denoising steps.")
          .optional("num_frames", &ScenarioRequest::num_frames, whole<std::uint32_t>(1, 100'000), "Frames, 8k+1.")
          .optional("size", &ScenarioRequest::size, text(), "`WIDTHxHEIGHT`.",
                    {.example = "64x64", .check = [](const std::string& size) {
                       const auto read = parse_frame_size(size);
                       return read.ok() ? std::string() : read.error().message;
                     }})
          .field("seed", &ScenarioRequest::seed, whole<std::uint64_t>(0, std::uint64_t{1} << 62), "Of the noise; request i has seed + i - 1.")
          .optional("guidance_scale", &ScenarioRequest::guidance_scale, number(0, 1000), "How closely the prompt is followed.");
  static const Schema<ExperimentWorkload> workload =
      Schema<ExperimentWorkload>("experiment workload", "What one run does.")
          .field("requests", &ExperimentWorkload::requests, whole<std::uint32_t>(1, 256), "Submitted at once; a run lasts until the last one is done.")
          .field("request", &ExperimentWorkload::request, object(request), "Each of them.", {.standard = "the model's defaults"});
  static const Schema<ExperimentUntil> until =
      Schema<ExperimentUntil>("until", "Ends the repetitions after `min_runs`.")
          .field("metric", &ExperimentUntil::metric, choice<ExperimentTime>(times), "The time that is looked at.")
          .field("rel_ci95", &ExperimentUntil::rel_ci95, number(0.0001, 1),
                 "Enough once half the 95 % confidence interval is at most this part of the median, in every configuration.");
  static const Schema<ExperimentRepeat> repeat =
      Schema<ExperimentRepeat>("repeat", "How often. Configurations take turns: A B A B, not A A B B.")
          .field("warmup", &ExperimentRepeat::warmup, whole<std::uint32_t>(0, 100), "Runs of each configuration that are not counted.")
          .field("min_runs", &ExperimentRepeat::min_runs, whole<std::uint32_t>(1, 1000), "Counted runs of each; fewer than 5 say little.")
          .field("max_runs", &ExperimentRepeat::max_runs, whole<std::uint32_t>(1, 1000), "With `until`: the end in any case.",
                 {.standard = "min_runs; with `until` 4 times that"})
          .field("until", &ExperimentRepeat::until, until_value(until), "When more runs say nothing new.", {.standard = "max_runs"});
  static const Schema<ExperimentReport> report =
      Schema<ExperimentReport>("report", "Where the run's files go.")
          .field("dir", &ExperimentReport::dir, text(), "Folder; `{name}` and `{timestamp}` are replaced.");
  static const auto scaling_value = [] {
    const auto inner = object(scaling);
    Value<std::optional<ExperimentScaling>> value;
    value.type = inner.type;
    value.json = inner.json;
    value.pages = inner.pages;
    value.read = [inner](const YamlNode& node, const std::string& path, std::optional<ExperimentScaling>& into, YamlReader& reader) {
      return inner.read(node, path, into.emplace(), reader);
    };
    return value;
  }();
  static const Schema<ExperimentFile> schema =
      Schema<ExperimentFile>("Experiment", "A measurement for `orrery bench`. The keys of `spec`:")
          .field("deployment", &ExperimentFile::deployment, text(), "Name of a Deployment.", {.standard = "the only one"})
          .field("clock", &ExperimentFile::clock, choice<ExperimentClock>({{"wall", ExperimentClock::wall}, {"model", ExperimentClock::model}}),
                 "`wall`: run and measured on this machine. `model`: the planner's prediction; nothing is run. Stands in every row.")
          .field("scaling", &ExperimentFile::scaling, scaling_value, "Speed-up and efficiency.", {.standard = "none: only times"})
          .field("matrix", &ExperimentFile::matrix, object(matrix), "The configurations.", {.standard = "one, as deployed"})
          .field("exclude", &ExperimentFile::exclude, list_of(object(exclude), 256), "Configurations to leave out.", {.standard = "none"})
          .field("workload", &ExperimentFile::workload, object(workload), "What one run does.", {.standard = "one request with the model's defaults"})
          .field("repeat", &ExperimentFile::repeat, object(repeat), "How often.", {.standard = "1 warm-up, 5 runs"})
          .field("assert", &ExperimentFile::assertions, list_of(assertion(), 64),
                 "What has to be true; else the exit code is 7. `METRIC(AXIS=VALUE)` is one configuration's, `METRIC` alone every one's.",
                 {.example = "[\"efficiency(cards=2) >= 0.9\", \"output_sha256 is constant\"]", .standard = "the same bytes everywhere"})
          .field("report", &ExperimentFile::report, object(report), "Where files go.", {.standard = "runs/{name}/{timestamp}"});
  return schema;
}

/// All combinations, the last axis fastest.
std::vector<ExperimentPoint> combinations(const Matrix& matrix) {
  std::vector<ExperimentPoint> points(1);
  const auto values = values_of(matrix);
  for (std::size_t axis = 0; axis < values.size(); ++axis) {
    if (values[axis].empty()) continue;
    std::vector<ExperimentPoint> next;
    for (const auto& point : points)
      for (const auto& value : values[axis]) {
        if (next.size() > point_count_max) return next;
        next.push_back(point);
        next.back().settings.emplace_back(experiment_axes()[axis], value);
      }
    points = std::move(next);
  }
  return points;
}

}  // namespace

std::string_view name_of(ScalingKind kind) { return kind == ScalingKind::strong ? "strong" : "weak"; }
std::string_view name_of(ExperimentClock clock) { return clock == ExperimentClock::wall ? "wall" : "model"; }
std::string_view name_of(ScalingGrowth growth) { return growth == ScalingGrowth::requests ? "requests" : "num_frames"; }
std::string_view name_of(ExperimentTime time) {
  for (const auto& [word, one] : times)
    if (one == time) return word;
  return "unknown";
}

const std::vector<std::string>& experiment_axes() {
  static const std::vector<std::string> all = {"nodes", "cards", "parallelism.tensor", "parallelism.sequence", "parallelism.cfg", "transport"};
  return all;
}

const std::vector<ExperimentMetric>& experiment_metrics() {
  static const std::vector<ExperimentMetric> all = {
      {"step_seconds", "one denoising step, median"},
      {"latents_seconds", "from submission to the last latents"},
      {"frames_seconds", "from submission to the last frame"},
      {"speedup", "beside the baseline"},
      {"efficiency", "speed-up by size"},
      {"comm_fraction", "part of the denoiser's time in which cards wait for others"},
      {"imbalance", "busiest card's time by the mean, 1 is even"},
      {"peak_card_bytes", "most memory of one card"},
      {"bytes_per_step", "sent between processes"},
      {"output_sha256", "of the frames"},
  };
  return all;
}

std::string ExperimentPoint::name() const {
  std::string text;
  for (const auto& [axis, value] : settings) text += (text.empty() ? "" : " ") + axis + "=" + value;
  return text.empty() ? "as given" : text;
}

const std::string* ExperimentPoint::value(std::string_view axis) const {
  for (const auto& [name, value] : settings)
    if (name == axis) return &value;
  return nullptr;
}

Result<ExperimentAssertion> ExperimentAssertion::parse(std::string_view text) {
  ExperimentAssertion made;
  made.text_ = std::string(text);
  constexpr std::string_view is_constant = " is constant";
  if (text.size() > is_constant.size() && text.ends_with(is_constant)) {
    made.constant_ = std::string(text.substr(0, text.size() - is_constant.size()));
    return made;
  }
  const auto in_name = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; };
  const auto wrong = [](std::size_t at, const std::string& what) {
    return Error{ErrorCode::invalid_config, "is wrong at character " + std::to_string(at + 1) + ": " + what};
  };
  // A call becomes a name of the same length, so that places in messages stay true.
  std::string plain(text);
  for (std::size_t open = plain.find('('); open != std::string::npos; open = plain.find('(', open)) {
    const auto close = plain.find(')', open);
    if (close == std::string::npos) return wrong(open, "the bracket is not closed");
    auto begin = open;
    while (begin > 0 && in_name(plain[begin - 1])) --begin;
    if (begin == open) return wrong(open, "a metric should stand before the bracket");
    Call call;
    call.metric = plain.substr(begin, open - begin);
    for (std::size_t at = open + 1; at < close;) {
      auto end = std::min(plain.find(',', at), close);
      auto item = plain.substr(at, end - at);
      const auto first = item.find_first_not_of(' '), last = item.find_last_not_of(' ');
      item = first == std::string::npos ? "" : item.substr(first, last - first + 1);
      const auto equals = item.find('=');
      if (equals == std::string::npos || equals == 0 || equals + 1 == item.size()) return wrong(at, "should be AXIS=VALUE");
      const auto axis = axis_named(item.substr(0, equals));
      if (axis.empty()) return wrong(at, "'" + shown(item.substr(0, equals)) + "' is no axis");
      call.where.emplace_back(axis, item.substr(equals + 1));
      at = end + 1;
    }
    if (call.where.empty()) return wrong(open, "should be AXIS=VALUE");
    call.text = plain.substr(begin, close + 1 - begin);
    for (auto at = open; at <= close; ++at)
      if (!in_name(plain[at])) plain[at] = '_';
    call.name = plain.substr(begin, close + 1 - begin);
    made.calls_.push_back(std::move(call));
  }
  ORRERY_TRY(expectation, Expectation::parse(plain));
  made.expectation_ = std::move(expectation);
  return made;
}

std::vector<std::string> ExperimentAssertion::plain_names() const {
  std::vector<std::string> all;
  if (!expectation_) return all;
  for (const auto& name : expectation_->names())
    if (std::none_of(calls_.begin(), calls_.end(), [&](const Call& call) { return call.name == name; })) all.push_back(name);
  return all;
}

ExperimentSpec read_experiment(const YamlNode& spec, const std::string& name, YamlReader& reader) {
  ExperimentFile file;
  ExperimentSpec experiment;
  experiment.name = name;
  const bool good = experiment_schema().read(spec, "spec", file, reader);
  experiment.deployment = file.deployment;
  experiment.clock = file.clock;
  experiment.scaling = file.scaling;
  experiment.workload = file.workload;
  experiment.repeat = file.repeat;
  experiment.report = file.report;
  const auto complain = [&](const std::string& path, const std::string& what, const std::string& hint = "") {
    reader.complain(spec.nearest(path), "E112", "spec." + path, what, hint);
  };
  auto& repeat = experiment.repeat;
  if (repeat.max_runs == 0) repeat.max_runs = repeat.until ? 4 * repeat.min_runs : repeat.min_runs;
  if (repeat.max_runs < repeat.min_runs) complain("repeat.max_runs", "should not be less than min_runs");
  if (repeat.max_runs > repeat.min_runs && !repeat.until) complain("repeat.max_runs", "needs 'until', which says when fewer runs are enough");

  const auto all = combinations(file.matrix);
  if (all.size() > point_count_max) complain("matrix", "makes more than 256 configurations", "use fewer values");
  for (const auto& point : all)
    if (std::none_of(file.exclude.begin(), file.exclude.end(), [&](const auto& each) { return is_excluded(point, each); }))
      experiment.points.push_back(point);
  if (experiment.points.empty()) complain("exclude", "leaves no configuration");
  std::set<std::string> names;
  for (const auto& point : experiment.points)
    if (!names.insert(point.name()).second) {
      complain("matrix", "names the configuration '" + point.name() + "' twice");
      break;
    }
  if (!good) return experiment;

  if (file.scaling) {
    const auto& scaling = *file.scaling;
    std::vector<std::string> sizes;
    for (const auto& point : experiment.points)
      if (const auto* value = point.value(scaling.over)) sizes.push_back(*value);
    if (sizes.empty())
      reader.complain(spec.nearest("scaling.over"), "E201", "spec.scaling.over", "names '" + scaling.over + "', which the matrix does not have",
                      "add it to the matrix");
    else if (std::find(sizes.begin(), sizes.end(), "auto") != sizes.end())
      complain("matrix", "has auto for '" + scaling.over + "', which is the size of the scaling", "write numbers");
    else if (std::find(sizes.begin(), sizes.end(), std::to_string(scaling.baseline)) == sizes.end())
      complain("scaling.baseline", "is not among the values of '" + scaling.over + "'");
    if (scaling.kind == ScalingKind::weak && !scaling.grow) complain("scaling", "needs 'grow' for weak scaling", "e.g. grow: requests");
    if (scaling.kind == ScalingKind::strong && scaling.grow) complain("scaling.grow", "is for weak scaling");
    if (scaling.grow == ScalingGrowth::requests && file.clock == ExperimentClock::model)
      complain("scaling.grow", "should not be requests with clock model, which predicts one video", "use num_frames, or clock wall");
  }
  if (file.workload.requests > 1 && file.clock == ExperimentClock::model)
    complain("workload.requests", "should be 1 with clock model, which predicts one video");

  for (std::size_t i = 0; i < file.assertions.size(); ++i) {
    const auto& one = file.assertions[i];
    const auto path = "assert[" + std::to_string(i) + "]";
    auto metrics = one.plain_names();
    if (!one.constant().empty()) metrics.push_back(one.constant());
    for (const auto& call : one.calls()) {
      metrics.push_back(call.metric);
      const bool met = std::any_of(experiment.points.begin(), experiment.points.end(), [&](const ExperimentPoint& point) {
        return std::all_of(call.where.begin(), call.where.end(), [&](const auto& wanted) {
          const auto* value = point.value(wanted.first);
          return value != nullptr && *value == wanted.second;
        });
      });
      if (!met) complain(path, "asks for a configuration that the matrix does not have: " + one.text());
    }
    for (const auto& metric : metrics) {
      if ((metric == "speedup" || metric == "efficiency") && !file.scaling)
        complain(path, "asks for " + metric + ", but there is no 'scaling'", "add scaling: {over: cards, baseline: 1}");
      if (metric == "output_sha256" && file.clock == ExperimentClock::model)
        complain(path, "asks for output_sha256, but nothing is made with clock model");
    }
  }
  experiment.assertions = std::move(file.assertions);
  return experiment;
}

OrderedJson experiment_json_schema() { return experiment_schema().json_schema(); }
std::vector<SchemaPage> experiment_pages() { return experiment_schema().pages(); }
std::vector<std::string> experiment_keys() { return experiment_schema().keys(); }

}  // namespace orrery::topology
