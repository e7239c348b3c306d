#include "launch/bench_plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace orrery::launch {
namespace {

constexpr double width = 640, height = 420, left = 74, right = 20, top = 46, bottom = 58;
constexpr std::array<const char*, 6> colors = {"#1f5fa8", "#c4501b", "#2c8a4b", "#7a4aa0", "#8a6d1d", "#4d4d4d"};

__attribute__((format(printf, 1, 2))) std::string printed(const char* form, ...) {
  std::array<char, 512> text;
  va_list values;
  va_start(values, form);
  std::vsnprintf(text.data(), text.size(), form, values);
  va_end(values);
  return text.data();
}

std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '&') safe += "&amp;";
    else if (c == '<') safe += "&lt;";
    else if (c == '>') safe += "&gt;";
    else if (c == '"') safe += "&quot;";
    else safe += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return safe;
}

/// "0.25", "16", "1.5k"
std::string tick_text(double value) { return value >= 10'000 ? printed("%.4gk", value / 1000) : printed("%.4g", value); }

/// Where values lie, and which of them get a line.
struct Axis {
  bool logarithmic = true;
  double low = 1, high = 2;
  std::vector<double> ticks;

  static Axis over(double least, double most, bool logarithmic) {
    Axis axis;
    axis.logarithmic = logarithmic;
    if (logarithmic) {
      auto from = std::floor(std::log2(least) + 1e-9), to = std::ceil(std::log2(most) - 1e-9);
      if (to <= from) to = from + 1;
      axis.low = std::exp2(from);
      axis.high = std::exp2(to);
      const auto every = std::max(1.0, std::ceil((to - from) / 10));
      for (auto at = from; at <= to; at += every) axis.ticks.push_back(std::exp2(at));
      return axis;
    }
    // A step of 1, 2 or 5 times a power of ten, about five of them.
    const auto rough = most / 5;
    const auto power = std::pow(10.0, std::floor(std::log10(rough)));
    const auto step = power * (rough / power <= 1 ? 1 : rough / power <= 2 ? 2 : rough / power <= 5 ? 5 : 10);
    axis.low = 0;
    axis.high = step * std::ceil(most / step - 1e-9);
    for (int i = 0; i * step <= axis.high * (1 + 1e-9); ++i) axis.ticks.push_back(i * step);
    return axis;
  }
  /// 0 to 1.
  double place(double value) const {
    const auto clamped = std::clamp(value, low, high);
    return logarithmic ? (std::log2(clamped) - std::log2(low)) / (std::log2(high) - std::log2(low)) : (clamped - low) / (high - low);
  }
};

}  // namespace

std::string svg_of(const Plot& plot) {
  double x_least = INFINITY, x_most = 0, y_least = INFINITY, y_most = 0;
  const auto see = [&](const PlotPoint& point) {
    x_least = std::min(x_least, point.x);
    x_most = std::max(x_most, point.x);
    y_least = std::min({y_least, point.y, point.interval ? point.interval->low : point.y});
    y_most = std::max({y_most, point.y, point.interval ? point.interval->high : point.y});
  };
  for (const auto& series : plot.series)
    for (const auto& point : series.points) see(point);
  for (const auto& point : plot.ideal) see(point);
  if (!(x_most > 0) || !(y_most > 0)) x_least = y_least = 1, x_most = y_most = 2;
  y_least = std::max(y_least, y_most * 1e-6);  // An interval may reach 0.
  const auto x_axis = Axis::over(x_least, x_most, true), y_axis = Axis::over(y_least, y_most, plot.logarithmic_y);
  const auto px = [&](double x) { return left + x_axis.place(x) * (width - left - right); };
  const auto py = [&](double y) { return height - bottom - y_axis.place(y) * (height - top - bottom); };

  std::string svg = printed("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" viewBox=\"0 0 %g %g\" "
                            "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
                            width, height, width, height);
  svg += printed("<text x=\"%g\" y=\"22\" font-size=\"15\" font-weight=\"bold\">", left) + escaped(plot.title) + "</text>\n";
  for (const auto tick : x_axis.ticks)
    svg += printed("<line x1=\"%.2f\" y1=\"%g\" x2=\"%.2f\" y2=\"%g\" stroke=\"#dddddd\"/>"
                   "<text x=\"%.2f\" y=\"%g\" text-anchor=\"middle\">%s</text>\n",
                   px(tick), top, px(tick), height - bottom, px(tick), height - bottom + 18, tick_text(tick).c_str());
  for (const auto tick : y_axis.ticks)
    svg += printed("<line x1=\"%g\" y1=\"%.2f\" x2=\"%g\" y2=\"%.2f\" stroke=\"#dddddd\"/>"
                   "<text x=\"%g\" y=\"%.2f\" text-anchor=\"end\">%s</text>\n",
                   left, py(tick), width - right, py(tick), left - 8, py(tick) + 4, tick_text(tick).c_str());
  svg += printed("<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" fill=\"none\" stroke=\"#333333\"/>\n", left, top,
                 width - left - right, height - top - bottom);
  svg += printed("<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">", (left + width - right) / 2, height - 16) + escaped(plot.x_label) + "</text>\n";
  svg += printed("<text transform=\"translate(20 %g) rotate(-90)\" text-anchor=\"middle\">", (top + height - bottom) / 2) +
         escaped(plot.y_label) + "</text>\n";

  const auto line_of = [&](std::vector<PlotPoint> points, const char* more) {
    std::stable_sort(points.begin(), points.end(), [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    std::string path;
    for (const auto& point : points) path += printed("%s%.2f,%.2f", path.empty() ? "" : " ", px(point.x), py(point.y));
    return "<polyline points=\"" + path + "\" fill=\"none\" " + more + "/>\n";
  };
  struct Key {
    std::string name, color;
    bool dashed;
  };
  std::vector<Key> keys;
  if (!plot.ideal.empty()) {
    svg += line_of(plot.ideal, "stroke=\"#888888\" stroke-dasharray=\"6 4\"");
    keys.push_back({"ideal", "#888888", true});
  }
  bool some_measured = false, some_predicted = false;
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    const auto& series = plot.series[i];
    const char* color = colors[i % colors.size()];
    svg += line_of(series.points, printed("stroke=\"%s\" stroke-width=\"1.5\"", color).c_str());
    for (const auto& point : series.points) {
      if (point.interval)
        for (const auto& [x1, y1, x2, y2] :
             {std::array<double, 4>{px(point.x), py(point.interval->low), px(point.x), py(point.interval->high)},
              std::array<double, 4>{px(point.x) - 4, py(point.interval->low), px(point.x) + 4, py(point.interval->low)},
              std::array<double, 4>{px(point.x) - 4, py(point.interval->high), px(point.x) + 4, py(point.interval->high)}})
          svg += printed("<line x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\" stroke=\"%s\"/>", x1, y1, x2, y2, color);
      svg += printed("<circle cx=\"%.2f\" cy=\"%.2f\" r=\"4\" fill=\"%s\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", px(point.x), py(point.y),
                     point.measured ? color : "#ffffff", color);
      (point.measured ? some_measured : some_predicted) = true;
    }
    keys.push_back({series.name, color, false});
  }
  double at = top + 18;
  for (const auto& key : keys) {
    svg += printed("<line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\" stroke=\"%s\" stroke-width=\"1.5\"%s/><text x=\"%g\" y=\"%g\">", left + 12, at - 4, left + 36,
                   at - 4, key.color.c_str(), key.dashed ? " stroke-dasharray=\"6 4\"" : "", left + 42, at) +
           escaped(key.name) + "</text>\n";
    at += 17;
  }
  const char* note = some_measured && some_predicted ? "filled: measured, hollow: predicted" : some_predicted ? "hollow: predicted" : "filled: measured";
  svg += printed("<text x=\"%g\" y=\"38\" font-size=\"11\" fill=\"#555555\">%s</text>\n</svg>\n", left, note);
  return svg;
}

}  // namespace orrery::launch
