#include "needle/train/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "needle/core/format.h"

namespace needle {
namespace {

constexpr std::string_view kInk = "#0f172a";
constexpr std::string_view kMuted = "#64748b";
constexpr std::string_view kGrid = "#e2e8f0";
constexpr std::string_view kFont =
    "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\"";

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

// 1500 -> "1,500"; 0.25 -> "0.25"; digits follow from the distance between ticks.
std::string tick_label(double value, double distance) {
  const int decimals =
      distance >= 1.0 ? 0 : static_cast<int>(std::ceil(-std::log10(distance) - 1e-9));
  std::string text = format("{:.{}f}", std::abs(value) < distance * 1e-6 ? 0.0 : value, decimals);
  const std::size_t digits_end = text.find('.') == std::string::npos ? text.size() : text.find('.');
  const std::size_t digits_begin = text.starts_with('-') ? 1 : 0;
  for (std::size_t i = digits_end; i > digits_begin + 3; i -= 3) {
    text.insert(i - 3, ",");
  }
  return text;
}

std::vector<ChartPoint> finite_points(const ChartSeries& series) {
  std::vector<ChartPoint> points;
  std::copy_if(series.points.begin(), series.points.end(), std::back_inserter(points),
               [](const ChartPoint& p) { return std::isfinite(p.x) && std::isfinite(p.y); });
  return points;
}

// Where the data is drawn, and how values map to pixels.
class Plot {
 public:
  Plot(const ChartOptions& options, const Range& x, const Range& y) : options_(options) {
    x_ticks_ = internal::round_ticks(x.low, x.high, std::max(2, options.width / 110));
    y_ticks_ = internal::round_ticks(y.low, y.high, std::max(2, options.height / 70));
    // Time runs from edge to edge; losses end on a round number.
    x_range_ = x.high > x.low ? x : Range{x.low - 0.5, x.high + 0.5};
    y_range_ = {std::min(y.low, y_ticks_.front()), std::max(y.high, y_ticks_.back())};
  }

  double left() const { return 76; }
  double right() const { return options_.width - 28; }
  double top() const { return 84; }
  double bottom() const { return options_.height - 58; }
  double to_x(double value) const {
    return left() + (right() - left()) * (value - x_range_.low) / (x_range_.high - x_range_.low);
  }
  double to_y(double value) const {
    return bottom() - (bottom() - top()) * (value - y_range_.low) / (y_range_.high - y_range_.low);
  }

  std::string axes() const {
    std::string svg;
    const double y_step = y_ticks_.size() > 1 ? y_ticks_[1] - y_ticks_[0] : 1.0;
    for (const double tick : y_ticks_) {
      const double y = to_y(tick);
      svg +=
          format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n",
                 left(), y, right(), y, kGrid);
      svg += format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\" fill=\"{}\">{}</text>\n",
                    left() - 10, y + 4, kMuted, tick_label(tick, y_step));
    }
    const double x_step = x_ticks_.size() > 1 ? x_ticks_[1] - x_ticks_[0] : 1.0;
    for (const double tick : x_ticks_) {
      if (tick < x_range_.low || tick > x_range_.high) {
        continue;
      }
      const double x = to_x(tick);
      svg +=
          format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n",
                 x, bottom(), x, bottom() + 5, kMuted);
      svg +=
          format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\" fill=\"{}\">{}</text>\n",
                 x, bottom() + 22, kMuted, tick_label(tick, x_step));
    }
    svg += format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n",
                  left(), bottom(), right(), bottom(), kMuted);
    svg += format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\" fill=\"{}\">{}</text>\n",
                  (left() + right()) / 2, options_.height - 14, kInk, escaped(options_.x_label));
    svg += format(
        "<text transform=\"translate(20 {:.1f}) rotate(-90)\" text-anchor=\"middle\" "
        "fill=\"{}\">{}</text>\n",
        (top() + bottom()) / 2, kInk, escaped(options_.y_label));
    return svg;
  }

  std::string line(const ChartSeries& series) const {
    const std::vector<ChartPoint> points = thinned(finite_points(series));
    std::string svg;
    std::string path;
    for (const auto& [x, y] : points) {
      path += format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", to_x(x), to_y(y));
    }
    if (points.size() > 1) {
      svg += format(
          "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\" "
          "stroke-linejoin=\"round\" stroke-linecap=\"round\"{}/>\n",
          path, series.color, series.width, series.opacity,
          series.dashed ? " stroke-dasharray=\"6 5\"" : "");
    }
    if (series.markers || points.size() == 1) {
      for (const auto& [x, y] : points) {
        svg += format(
            "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\" stroke=\"#ffffff\" "
            "stroke-width=\"1.2\"/>\n",
            to_x(x), to_y(y), series.color);
      }
    }
    return svg;
  }

 private:
  // The lowest and the highest point of each pixel column, in order of x.
  std::vector<ChartPoint> thinned(const std::vector<ChartPoint>& points) const {
    const auto columns = static_cast<std::size_t>(right() - left());
    if (points.size() <= 2 * columns) {
      return points;
    }
    std::vector<ChartPoint> result;
    const std::size_t group = (points.size() + columns - 1) / columns;
    for (std::size_t begin = 0; begin < points.size(); begin += group) {
      const auto first = points.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto last =
          points.begin() + static_cast<std::ptrdiff_t>(std::min(begin + group, points.size()));
      const auto [low, high] = std::minmax_element(
          first, last, [](const ChartPoint& a, const ChartPoint& b) { return a.y < b.y; });
      result.push_back(*std::min(low, high));
      if (low != high) {
        result.push_back(*std::max(low, high));
      }
    }
    return result;
  }

  const ChartOptions& options_;
  Range x_range_;
  Range y_range_;
  std::vector<double> x_ticks_;
  std::vector<double> y_ticks_;
};

// One row below the title, a short stroke of each line before its name.
std::string legend(std::span<const ChartSeries> series, double left) {
  std::string svg;
  double x = left;
  for (const ChartSeries& one : series) {
    if (one.name.empty() || finite_points(one).empty()) {
      continue;
    }
    svg += format(
        "<line x1=\"{:.1f}\" y1=\"58\" x2=\"{:.1f}\" y2=\"58\" stroke=\"{}\" stroke-width=\"3\" "
        "stroke-linecap=\"round\"{}/>\n",
        x, x + 22, one.color, one.dashed ? " stroke-dasharray=\"6 5\"" : "");
    svg += format("<text x=\"{:.1f}\" y=\"62\" fill=\"{}\">{}</text>\n", x + 30, kInk,
                  escaped(one.name));
    x += 30 + 7.2 * static_cast<double>(one.name.size()) +
         26;  // 7.2: mean advance of the 13 px font
  }
  return svg;
}

}  // namespace

namespace internal {

std::vector<double> round_ticks(double low, double high, int count) {
  if (!(high > low)) {
    const double half = std::max(std::abs(low) * 0.1, 0.5);
    low -= half;
    high += half;
  }
  const double rough = (high - low) / std::max(count, 1);
  const double magnitude = std::pow(10.0, std::floor(std::log10(rough)));
  double distance = 10.0 * magnitude;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * magnitude >= rough * (1.0 - 1e-9)) {
      distance = factor * magnitude;
      break;
    }
  }
  std::vector<double> ticks;
  const double first = std::floor(low / distance + 1e-9);
  const double last = std::ceil(high / distance - 1e-9);
  for (double i = first; i <= last; i += 1.0) {
    ticks.push_back(i * distance);
  }
  return ticks;
}

}  // namespace internal

std::string render_line_chart(std::span<const ChartSeries> series, const ChartOptions& options) {
  Range x, y;
  for (const ChartSeries& one : series) {
    for (const ChartPoint& point : finite_points(one)) {
      x.include(point.x);
      y.include(point.y);
    }
  }
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {} {}\" "
      "{} "
      "font-size=\"13\" role=\"img\" aria-label=\"{}\">\n",
      options.width, options.height, options.width, options.height, kFont, escaped(options.title));
  svg += format("<rect width=\"{}\" height=\"{}\" fill=\"#ffffff\"/>\n", options.width,
                options.height);
  svg +=
      format("<text x=\"76\" y=\"34\" font-size=\"18\" font-weight=\"600\" fill=\"{}\">{}</text>\n",
             kInk, escaped(options.title));
  if (x.empty()) {
    svg += format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{}\">no data</text>\n",
                  options.width / 2, options.height / 2, kMuted);
    return svg + "</svg>\n";
  }
  const Plot plot(options, x, y);
  svg += plot.axes();
  for (const ChartSeries& one : series) {
    svg += plot.line(one);
  }
  svg += legend(series, plot.left());
  return svg + "</svg>\n";
}

}  // namespace needle
