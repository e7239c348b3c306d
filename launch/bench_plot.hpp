// Small line plots as SVG text: points with intervals, on axes with a logarithm to base 2.
//
// Deterministic: the same plot gives the same bytes. Filled points were measured, hollow ones predicted.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/bench_statistics.hpp"

namespace orrery::launch {

struct PlotPoint {
  double x = 0, y = 0;  // Above 0.
  std::optional<Interval> interval;
  bool measured = true;
};

struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;  // Drawn in order of x.
};

struct Plot {
  std::string title, x_label, y_label;
  bool logarithmic_y = true;  // Else from 0.
  std::vector<PlotSeries> series;
  /// Points of a dashed line, named "ideal".
  std::vector<PlotPoint> ideal;
};

/// A whole SVG document.
std::string svg_of(const Plot& plot);

}  // namespace orrery::launch
