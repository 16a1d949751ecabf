#include "needle/quant/needle_rs_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string_view>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/safetensors.h"
#include "needle/quant/group_quant.h"
#include "needle/quant/weights_file.h"

namespace needle {
namespace {

// A tensor here and the checkpoint's parameter that it is.
struct Entry {
  std::string name;
  std::string parameter;
  std::vector<std::int64_t> shape;  // of the parameter
  bool kernel = false;              // INT4, [in, out] there
  bool transposed = false;          // F32, [in, out] there
};

std::vector<Entry> entries_of(const ModelConfig& config) {
  const std::int64_t d = config.d_model;
  const std::int64_t hidden = d / 4;
  std::vector<Entry> entries = {{"embedding", "embedding.weight", {config.vocab_size, d}},
                                {"encoder_final_norm", "encoder.final_norm.scale", {d}},
                                {"decoder_final_norm", "decoder.final_norm.scale", {d}}};
  const auto add_attention = [&](const std::string& to, const std::string& norm,
                                 const std::string& from) {
    entries.push_back({norm, from + "norm.scale", {d}});
    entries.push_back({to + "_gate", from + "gate", {}});
    const std::string attention = from + "attention.";
    for (const auto& [own, theirs, rows] :
         {std::tuple{"q_proj", "wq", d}, std::tuple{"k_proj", "wk", config.kv_dim()},
          std::tuple{"v_proj", "wv", config.kv_dim()}, std::tuple{"out_proj", "wo", d}}) {
      entries.push_back(
          {to + "." + theirs, attention + own + ".weight", {rows, d}, /*kernel=*/true});
    }
    for (const char* own : {"q_norm", "k_norm"}) {
      entries.push_back({to + "." + own, attention + own + ".scale", {config.head_dim()}});
    }
  };
  const auto add_feed_forward = [&](const std::string& to, const std::string& from) {
    if (config.no_feedforward) {
      return;
    }
    entries.push_back({to + "_norm", from + "norm.scale", {d}});
    entries.push_back({to + "_gate", from + "gate", {}});
    const std::string layers = from + "feed_forward.";
    entries.push_back({to + ".gate_proj", layers + "gate_proj.weight", {config.d_ff, d}, true});
    entries.push_back({to + ".up_proj", layers + "up_proj.weight", {config.d_ff, d}, true});
    entries.push_back({to + ".down_proj", layers + "down_proj.weight", {d, config.d_ff}, true});
  };
  for (std::int64_t i = 0; i < config.num_encoder_layers; ++i) {
    const std::string to = format("encoder.{}.", i);
    const std::string from = format("encoder.layers.{}.", i);
    add_attention(to + "self_attn", to + "norm", from + "self_attn.");
    add_feed_forward(to + "ffn", from + "ffn.");
  }
  for (std::int64_t i = 0; i < config.num_decoder_layers; ++i) {
    const std::string to = format("decoder.{}.", i);
    const std::string from = format("decoder.layers.{}.", i);
    add_attention(to + "self_attn", to + "self_attn_norm", from + "self_attn.");
    add_attention(to + "cross_attn", to + "cross_attn_norm", from + "cross_attn.");
    add_feed_forward(to + "ffn", from + "ffn.");
  }
  // Last: what a file that has none would be given is then bounded by tensors that it has.
  const std::string head = "contrastive_head.";
  entries.push_back(
      {"contrastive_hidden_kernel", head + "hidden.weight", {hidden, d}, false, true});
  entries.push_back({"contrastive_hidden_bias", head + "hidden.bias", {hidden}});
  entries.push_back({"contrastive_proj_kernel",
                     head + "proj.weight",
                     {config.contrastive_dim, hidden},
                     false,
                     true});
  return entries;
}

std::size_t count_of(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t side : shape) {
    count *= side;
  }
  return static_cast<std::size_t>(count);
}

// [rows, cols] to [cols, rows].
std::vector<float> transposed(std::span<const float> values, std::int64_t rows, std::int64_t cols) {
  std::vector<float> result(values.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      result[static_cast<std::size_t>(col * rows + row)] =
          values[static_cast<std::size_t>(row * cols + col)];
    }
  }
  return result;
}

template <typename T>
std::string as_bytes_text(std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The safetensors container, whose own writer has no type I4.
class Container {
 public:
  void add(const std::string& name, std::string_view dtype, const std::vector<std::int64_t>& shape,
           const std::string& bytes) {
    header_[name] = {{"dtype", dtype},
                     {"shape", shape},
                     {"data_offsets", {data_.size(), data_.size() + bytes.size()}}};
    data_ += bytes;
  }
  void add_metadata(const std::string& key, const std::string& value) {
    header_["__metadata__"][key] = value;
  }
  void write(const std::filesystem::path& path) const {
    std::string text = header_.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    AtomicFileWriter out(path);
    const std::uint64_t size = text.size();
    out.write(std::as_bytes(std::span(&size, 1)));
    out.write(text);
    out.write(data_);
    out.commit();
  }

 private:
  Json header_ = Json::object();
  std::string data_;
};

void add_kernel(Container& to, const Entry& entry, std::span<const float> values) {
  const std::int64_t out = entry.shape[0];
  const std::int64_t in = entry.shape[1];
  const QuantizedKernel kernel =
      quantize_groups(transposed(values, out, in), in, out, QuantBits::kInt4);
  const std::int64_t groups = (in + kernel.group_size - 1) / kernel.group_size;
  const std::int64_t pairs = groups * kernel.group_size / 2;
  NEEDLE_CHECK(kernel.group_size % 2 == 0, "{}: groups of {} rows", entry.name, kernel.group_size);
  std::string packed;
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    for (std::int64_t o = 0; o < out; ++o) {
      const auto code = [&](std::int64_t row) {
        return row < in ? kernel.codes[static_cast<std::size_t>(row * out + o)] & 15 : 0;
      };
      packed.push_back(static_cast<char>(code(2 * pair) | code(2 * pair + 1) << 4));
    }
  }
  to.add(entry.name, "I4", {pairs, out}, packed);
  to.add(entry.name + ".scale", "F32", {groups, out},
         as_bytes_text(std::span<const float>(kernel.scales)));
}

void add_tensor(Container& to, const Entry& entry, std::span<const float> values) {
  if (entry.kernel) {
    add_kernel(to, entry, values);
  } else if (entry.name == "embedding") {
    std::vector<std::uint16_t> halves(values.size());
    std::ranges::transform(values, halves.begin(), float_to_bfloat16);
    to.add(entry.name, "BF16", entry.shape, as_bytes_text(std::span<const std::uint16_t>(halves)));
  } else if (entry.transposed) {
    const std::vector<float> turned = transposed(values, entry.shape[0], entry.shape[1]);
    to.add(entry.name, "F32", {entry.shape[1], entry.shape[0]},
           as_bytes_text(std::span<const float>(turned)));
  } else {
    to.add(entry.name, "F32", entry.shape.empty() ? std::vector<std::int64_t>{1} : entry.shape,
           as_bytes_text(values));
  }
}

std::string vocabulary_text(const NeedleRsModel& model) {
  std::string text;
  for (const auto& [piece, score] : model.vocabulary) {
    if (piece.empty() || piece.find_first_of("\t\n\r") != std::string::npos) {
      throw Error(
          format("the piece '{}' can't be a line of vocab.txt: it holds a tab or line end", piece));
    }
    text += format("{}\t{}\n", piece, score + 0.0f);  // no minus before a zero
  }
  return text;
}

// The members of __metadata__, with the published program's defaults.
class Settings {
 public:
  Settings(const std::map<std::string, std::string, std::less<>>& metadata, std::string where)
      : metadata_(metadata), where_(std::move(where)) {}

  std::optional<std::string> text(std::string_view key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? std::nullopt : std::optional(found->second);
  }
  template <typename T>
  T number(std::string_view key, T otherwise) const {
    const auto value = text(key);
    if (!value) {
      return otherwise;
    }
    T result{};
    const char* const end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, result);
    if (error != std::errc() || stop != end) {
      throw FormatError(
          format("{}: __metadata__.{}: expected a number, got {}", where_, key, *value));
    }
    return result;
  }
  bool flag(std::string_view key, bool otherwise) const {
    const auto value = text(key);
    return value ? *value == "True" || *value == "true" || *value == "1" : otherwise;
  }

 private:
  const std::map<std::string, std::string, std::less<>>& metadata_;
  std::string where_;
};

ModelConfig read_config(const SafetensorsFile& file, const std::string& where) {
  const Settings settings(file.metadata(), where);
  ModelConfig config;
  config.vocab_size = settings.number("vocab_size", config.vocab_size);
  config.d_model = settings.number("d_model", config.d_model);
  config.num_heads = settings.number("num_heads", config.num_heads);
  config.num_kv_heads = settings.number("num_kv_heads", config.num_kv_heads);
  config.num_encoder_layers = settings.number("num_encoder_layers", config.num_encoder_layers);
  config.num_decoder_layers = settings.number("num_decoder_layers", config.num_decoder_layers);
  config.d_ff = settings.number("ffn_dim", config.d_ff);
  config.no_feedforward = settings.flag("no_feedforward", config.no_feedforward);
  config.rope_theta = settings.number("rope_theta", config.rope_theta);
  config.max_seq_len = settings.number("max_enc_len", config.max_seq_len);
  if (const auto activation = settings.text("activation")) {
    const auto parsed = kActivationNames.parse(*activation);
    if (!parsed) {
      throw FormatError(format("{}: __metadata__.activation: expected one of {}, got {}", where,
                               kActivationNames.list(), *activation));
    }
    config.activation = *parsed;
  }
  if (file.contains("contrastive_proj_kernel")) {
    const std::vector<std::int64_t>& shape = file.at("contrastive_proj_kernel").shape;
    config.contrastive_dim = shape.size() == 2 ? shape[1] : config.contrastive_dim;
  }
  try {
    expected_tensors(config);  // throws if no file could hold it
  } catch (const ConfigError& error) {
    throw FormatError(format("{}: __metadata__: {}", where, error.what()));
  }
  return config;
}

std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name,
                               std::size_t count, const std::string& where) {
  const std::vector<float> values = to_floats(file.at(name));
  if (values.size() != count) {
    throw FormatError(
        format("{}: {} has {} values, expected {}", where, name, values.size(), count));
  }
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) {
    throw FormatError(format("{}: {} holds a value that is not finite", where, name));
  }
  return values;
}

std::vector<float> read_kernel(const SafetensorsFile& file, const Entry& entry,
                               const std::string& where) {
  const std::int64_t out = entry.shape[0];
  const std::int64_t in = entry.shape[1];
  if (!file.contains(entry.name + ".scale")) {  // not quantised yet
    return transposed(read_floats(file, entry.name, count_of(entry.shape), where), in, out);
  }
  const std::int64_t group = std::min(kGroupSize, in);
  const std::int64_t groups = (in + group - 1) / group;
  const std::vector<float> scales =
      read_floats(file, entry.name + ".scale", static_cast<std::size_t>(groups * out), where);
  const TensorView& packed = file.at(entry.name);
  if (group % 2 != 0 || packed.bytes.size() != static_cast<std::size_t>(groups * group / 2 * out)) {
    throw FormatError(format("{}: {} has {} bytes of codes, expected {}", where, entry.name,
                             packed.bytes.size(), groups * group / 2 * out));
  }
  std::vector<float> values(count_of(entry.shape));
  for (std::int64_t row = 0; row < in; ++row) {
    for (std::int64_t o = 0; o < out; ++o) {
      const int both =
          std::to_integer<int>(packed.bytes[static_cast<std::size_t>(row / 2 * out + o)]);
      const int half = row % 2 == 0 ? both & 15 : both >> 4;
      values[static_cast<std::size_t>(o * in + row)] =
          static_cast<float>(half < 8 ? half : half - 16) *
          scales[static_cast<std::size_t>(row / group * out + o)];
    }
  }
  return values;
}

std::vector<std::pair<std::string, float>> read_vocabulary(const std::filesystem::path& path,
                                                           std::int64_t count) {
  std::vector<std::pair<std::string, float>> pieces;
  std::string text = read_file(path);
  if (!text.empty() && text.back() != '\n') {
    text.push_back('\n');
  }
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    line = line.ends_with('\r') ? line.substr(0, line.size() - 1) : line;
    const std::size_t tab = line.find('\t');
    float score = -static_cast<float>(pieces.size());  // of older files: the order counts
    if (tab != std::string_view::npos) {
      const auto [stop, error] =
          std::from_chars(line.data() + tab + 1, line.data() + line.size(), score);
      if (error != std::errc() || stop != line.data() + line.size() || !std::isfinite(score)) {
        throw FormatError(format("{}:{}: expected a piece, a tab and a score, got {}", path,
                                 pieces.size() + 1, line));
      }
    }
    pieces.emplace_back(line.substr(0, tab), score);
    begin = end + 1;
  }
  if (std::ssize(pieces) != count) {
    throw FormatError(
        format("{}: {} pieces, the weights' vocabulary has {}", path, pieces.size(), count));
  }
  return pieces;
}

}  // namespace

void write_needle_rs(const NeedleRsModel& model, const std::filesystem::path& weights,
                     const std::filesystem::path& vocabulary) {
  const ModelConfig& config = model.config;
  NEEDLE_CHECK(std::ssize(model.vocabulary) == config.vocab_size,
               "{} pieces, the model has a vocabulary of {}", model.vocabulary.size(),
               config.vocab_size);
  Container container;
  const auto number = [](auto value) { return format("{}", value); };
  for (const auto& [key, value] : std::initializer_list<std::pair<const char*, std::string>>{
           {"d_model", number(config.d_model)},
           {"num_heads", number(config.num_heads)},
           {"num_kv_heads", number(config.num_kv_heads)},
           {"num_encoder_layers", number(config.num_encoder_layers)},
           {"num_decoder_layers", number(config.num_decoder_layers)},
           {"vocab_size", number(config.vocab_size)},
           {"max_enc_len", number(model.max_enc_len)},
           {"max_dec_len", number(model.max_dec_len)},
           {"ffn_dim", number(config.d_ff)},
           {"no_feedforward", config.no_feedforward ? "True" : "False"},
           {"activation", std::string(kActivationNames.name(config.activation))},
           {"rope_theta", number(config.rope_theta)}}) {
    container.add_metadata(key, value);
  }
  for (const Entry& entry : entries_of(config)) {
    if (!model.has_contrastive_head && entry.name.starts_with("contrastive_")) {
      continue;
    }
    const auto found = model.parameters.find(entry.parameter);
    NEEDLE_CHECK(found != model.parameters.end() && found->second.size() == count_of(entry.shape),
                 "the parameter {} is missing or of another size", entry.parameter);
    add_tensor(container, entry, found->second);
  }
  const std::string text = vocabulary_text(model);
  container.write(weights);
  write_file_atomic(vocabulary, text);
}

NeedleRsModel read_needle_rs(const std::filesystem::path& weights,
                             const std::filesystem::path& vocabulary) {
  const SafetensorsFile file(weights);
  const std::string where = weights.string();
  NeedleRsModel model{.config = read_config(file, where)};
  const Settings settings(file.metadata(), where);
  model.max_enc_len = settings.number("max_enc_len", model.max_enc_len);
  model.max_dec_len = settings.number("max_dec_len", model.max_dec_len);
  model.has_contrastive_head = file.contains("contrastive_proj_kernel");
  for (const Entry& entry : entries_of(model.config)) {
    const std::size_t count = count_of(entry.shape);
    std::vector<float>& values = model.parameters[entry.parameter];
    if (!model.has_contrastive_head && entry.name.starts_with("contrastive_")) {
      values.resize(count);
    } else if (entry.kernel) {
      values = read_kernel(file, entry, where);
    } else {
      values = read_floats(file, entry.name, count, where);
      if (entry.transposed) {
        values = transposed(values, entry.shape[1], entry.shape[0]);
      }
    }
  }
  model.parameters["log_temp"] = {0.0f};
  model.vocabulary = read_vocabulary(vocabulary, model.config.vocab_size);
  return model;
}

}  // namespace needle
