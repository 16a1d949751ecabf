#include "needle/train/svg_chart.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace needle {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

TEST(SvgChartTest, TicksAreRoundAndCoverTheRange) {
  EXPECT_THAT(internal::round_ticks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(internal::round_ticks(0.3, 9.7, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(internal::round_ticks(120, 480, 4), ElementsAre(100, 200, 300, 400, 500));
  for (const auto& [low, high] : {std::pair{1e-7, 3e-7}, {-5.0, 5.0}, {3.0, 3.0}, {0.0, 1e12}}) {
    const std::vector<double> ticks = internal::round_ticks(low, high, 6);
    ASSERT_GE(ticks.size(), 2U);
    EXPECT_LE(ticks.size(), 14U);
    EXPECT_LE(ticks.front(), low + 1e-9 * std::abs(low));
    EXPECT_GE(ticks.back(), high - 1e-9 * std::abs(high));
  }
}

TEST(SvgChartTest, EmptyChartSaysNoData) {
  EXPECT_THAT(render_line_chart({}, {.title = "t", .x_label = "", .y_label = ""}),
              HasSubstr("no data"));
  const std::vector<ChartSeries> only_nan = {
      {.name = "n",
       .points = {{1.0, std::nan("")}, {std::numeric_limits<double>::infinity(), 1.0}}}};
  EXPECT_THAT(render_line_chart(only_nan, {.title = "t", .x_label = "", .y_label = ""}),
              HasSubstr("no data"));
}

TEST(SvgChartTest, OnePointIsADot) {
  const std::vector<ChartSeries> series = {{.name = "one", .points = {{5.0, 2.0}}}};
  const std::string svg = render_line_chart(series, {.title = "t", .x_label = "x", .y_label = "y"});
  EXPECT_EQ(count(svg, "<circle"), 1U);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(SvgChartTest, LongSeriesAreThinnedButKeepTheirExtremes) {
  ChartSeries series{.name = "long"};
  for (int i = 0; i < 100000; ++i) {
    series.points.push_back({static_cast<double>(i), i == 54321 ? 1000.0 : 1.0});
  }
  const std::vector<ChartSeries> all = {series};
  const std::string svg = render_line_chart(all, {.title = "t", .x_label = "x", .y_label = "y"});
  EXPECT_LT(svg.size(), 60000U);
  EXPECT_TRUE(svg.find(" 84.0 L") != std::string::npos);  // the top of the plot, where 1000 lies
  EXPECT_TRUE(svg.find(">80,000<") != std::string::npos);
}

TEST(SvgChartTest, TextIsEscaped) {
  const std::vector<ChartSeries> series = {{.name = "a<b & \"c\"", .points = {{0, 0}, {1, 1}}}};
  const std::string svg =
      render_line_chart(series, {.title = "<&>", .x_label = "x", .y_label = "y"});
  EXPECT_THAT(svg, HasSubstr("a&lt;b &amp; &quot;c&quot;"));
  EXPECT_THAT(svg, HasSubstr("&lt;&amp;&gt;"));
}

}  // namespace
}  // namespace needle
