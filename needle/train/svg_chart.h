// A line chart as one self-contained SVG: axes with round numbers, grid, labels, legend. No
// dependencies.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

// Three colours that stay apart in print and for the colour-blind.
inline constexpr std::string_view kChartBlue = "#2563eb";
inline constexpr std::string_view kChartOrange = "#ea580c";
inline constexpr std::string_view kChartGreen = "#059669";

struct ChartPoint {
  double x = 0.0;
  double y = 0.0;
};

struct ChartSeries {
  std::string name;                     // in the legend; empty: not listed
  std::vector<ChartPoint> points = {};  // in order of x; points that are not finite are left out
  std::string_view color = kChartBlue;
  double width = 2.0;  // of the line, in pixels
  double opacity = 1.0;
  bool markers = false;  // a dot at each point; a series of one point always has one
  bool dashed = false;
};

struct ChartOptions {
  std::string title = {};
  std::string x_label = {};
  std::string y_label = {};
  int width = 960;
  int height = 520;
};

// Series of many points are thinned to the extremes of each pixel column, so files stay small.
// Without a single finite point the chart says "no data". Pure function.
std::string render_line_chart(std::span<const ChartSeries> series, const ChartOptions& options);

namespace internal {
// Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high], about `count` of
// them.
std::vector<double> round_ticks(double low, double high, int count);
}  // namespace internal

}  // namespace needle
