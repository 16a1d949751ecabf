#include "needle/train/metrics.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <string_view>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/train/svg_chart.h"

namespace needle {
namespace {

constexpr std::string_view kMetricsFile = "metrics.jsonl";

// JSON has no NaN: a loss that is not a number is written as null.
Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

bool is_rollback(const Json& record) { return record.value("kind", "") == "rollback"; }

// What a run that is at `step`, having gone back `rollbacks` times, has recorded.
std::filesystem::path keep_until(const std::filesystem::path& path, std::int64_t step,
                                 std::int64_t rollbacks) {
  if (!std::filesystem::exists(path)) {
    return path;
  }
  std::string kept;
  std::int64_t seen = 0;  // roll-backs
  for (const Json& record : read_metrics(path.parent_path())) {
    if (is_rollback(record) && seen++ == rollbacks) {
      break;
    }
    if (seen < rollbacks || is_rollback(record) || record.value("step", std::int64_t{0}) <= step) {
      kept += record.dump() + "\n";
    }
  }
  write_file_atomic(path, kept);
  return path;
}

// Mean over a window around each point, narrower towards both ends, so that the curve neither lags
// nor starts off the data.
std::vector<ChartPoint> smoothed(const std::vector<ChartPoint>& points) {
  const std::size_t widest = std::max<std::size_t>(points.size() / 60, 2);
  std::vector<double> sums = {0.0};
  for (const ChartPoint& point : points) {
    sums.push_back(sums.back() + point.y);
  }
  std::vector<ChartPoint> result;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const std::size_t half = std::min({widest, i, points.size() - 1 - i});
    const double sum = sums[i + half + 1] - sums[i - half];
    result.push_back({points[i].x, sum / static_cast<double>(2 * half + 1)});
  }
  return result;
}

}  // namespace

Json StepRecord::to_json() const {
  Json json = {{"kind", "train"},
               {"step", step},
               {"total_steps", total_steps},
               {"epoch", number(epoch)},
               {"loss", number(loss)},
               {"cross_entropy", number(cross_entropy)},
               {"z_loss", number(z_loss)},
               {"adam_lr", number(adam_lr)},
               {"muon_lr", number(muon_lr)},
               {"grad_norm", number(grad_norm)},
               {"target_tokens", target_tokens},
               {"skipped", skipped},
               {"skipped_total", skipped_total},
               {"tokens_per_second", number(tokens_per_second)},
               {"utilization", number(utilization)},
               {"data_wait_ms", number(data_wait_ms)},
               {"seconds", number(seconds)}};
  if (contrastive) {
    json["contrastive"] = number(*contrastive);
  }
  return json;
}

std::string StepRecord::console_line() const {
  return format(
      "step={}/{} epoch={:.2f} loss={:.4f} ce={:.4f} z={:.4f} contrastive={} grad_norm={:.3f} "
      "adam_lr={:.3g} muon_lr={:.3g} tokens_per_s={:.0f} mfu={:.0f}% skipped={}",
      step, total_steps, epoch, loss, cross_entropy, z_loss,
      contrastive ? format("{:.4f}", *contrastive) : "-", grad_norm, adam_lr, muon_lr,
      tokens_per_second, 100.0 * utilization, skipped_total);
}

Json ValidationRecord::to_json() const {
  Json json = {{"kind", "validation"}, {"step", step}, {"seconds", number(seconds)}};
  for (const auto& [name, value] : scores) {
    json[name] = number(value);
  }
  return json;
}

std::string ValidationRecord::console_line() const {
  std::string line = format("validation step={}", step);
  for (const auto& [name, value] : scores) {
    line += format(" {}={:.4f}", name, value);
  }
  line += format(" seconds={:.1f}", seconds);
  return line;
}

Json RollbackRecord::to_json() const {
  return {{"kind", "rollback"},
          {"step", step},
          {"from_step", from_step},
          {"reason", reason},
          {"rollbacks", rollbacks},
          {"lr_scale", number(lr_scale)},
          {"lr_scale_until", lr_scale_until}};
}

MetricsWriter::MetricsWriter(const std::filesystem::path& run_folder, std::int64_t resume_step,
                             std::int64_t rollbacks)
    : path_(keep_until(run_folder / kMetricsFile, resume_step, rollbacks)),
      file_(path_, std::ios::binary | std::ios::app),
      tensorboard_(run_folder / "tensorboard", resume_step) {
  if (!file_) {
    throw FileError(format("{}: cannot open for writing: {}", path_, std::strerror(errno)));
  }
}

void MetricsWriter::write(const StepRecord& record) {
  write_line(record.to_json());
  std::vector<Scalar> scalars = {{"train/loss", record.loss},
                                 {"train/cross_entropy", record.cross_entropy},
                                 {"train/z_loss", record.z_loss},
                                 {"train/grad_norm", record.grad_norm},
                                 {"learning_rate/adam", record.adam_lr},
                                 {"learning_rate/muon", record.muon_lr},
                                 {"speed/tokens_per_second", record.tokens_per_second},
                                 {"speed/data_wait_ms", record.data_wait_ms}};
  if (record.contrastive) {
    scalars.emplace_back("train/contrastive", *record.contrastive);
  }
  tensorboard_.write(record.step, scalars);
}

void MetricsWriter::write(const ValidationRecord& record) {
  write_line(record.to_json());
  std::vector<Scalar> scalars;
  for (const auto& [name, value] : record.scores) {
    scalars.emplace_back("validation/" + name, value);
  }
  tensorboard_.write(record.step, scalars);
}

void MetricsWriter::write(const RollbackRecord& record) {
  write_line(record.to_json());
  tensorboard_ = TensorBoardWriter(path_.parent_path() / "tensorboard", record.step);
}

void MetricsWriter::write_line(const Json& record) {
  file_ << record.dump() + "\n";
  file_.flush();
  if (!file_) {
    throw FileError(format("{}: cannot write: {}; free some space and go on with --resume", path_,
                           std::strerror(errno)));
  }
}

std::vector<Json> read_metrics(const std::filesystem::path& run_folder) {
  const std::filesystem::path path = run_folder / kMetricsFile;
  std::vector<Json> records;
  if (!std::filesystem::exists(path)) {
    return records;
  }
  const std::string text = read_file(path);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) {
      break;  // a line that was cut by a crash
    }
    Json record = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                              text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (record.is_object()) {
      records.push_back(std::move(record));
    }
    begin = end + 1;
  }
  return records;
}

std::filesystem::path write_loss_chart(const std::filesystem::path& run_folder,
                                       const std::string& title) {
  std::vector<ChartPoint> training, validation, validation_int4;
  for (const Json& record : read_metrics(run_folder)) {
    const auto step = static_cast<double>(record.value("step", std::int64_t{0}));
    if (is_rollback(record)) {  // the chart shows what the run went on from
      for (auto* points : {&training, &validation, &validation_int4}) {
        std::erase_if(*points, [step](const ChartPoint& point) { return point.x > step; });
      }
      continue;
    }
    const auto add = [&](std::vector<ChartPoint>& points, const char* key, bool is_perplexity) {
      if (const auto found = record.find(key); found != record.end() && found->is_number()) {
        const double value = found->get<double>();
        points.push_back({step, is_perplexity ? std::log(std::max(value, 1e-12)) : value});
      }
    };
    const bool is_training = record.value("kind", "") == "train";
    if (is_training && !record.value("skipped", false)) {
      add(training, "loss", false);
    } else if (!is_training) {
      add(validation, "perplexity", true);
      add(validation_int4, "perplexity_int4", true);
    }
  }
  const std::filesystem::path path = run_folder / "loss.svg";
  const std::vector<ChartSeries> series = {
      {.name = "", .points = training, .color = kChartBlue, .width = 1.0, .opacity = 0.25},
      {.name = "training loss", .points = smoothed(training), .color = kChartBlue},
      {.name = "validation (ln perplexity)",
       .points = validation,
       .color = kChartOrange,
       .markers = true},
      {.name = "validation, INT4 kernels",
       .points = validation_int4,
       .color = kChartGreen,
       .markers = true,
       .dashed = true}};
  write_file_atomic(
      path, render_line_chart(series, {.title = title, .x_label = "step", .y_label = "loss"}));
  return path;
}

}  // namespace needle
