#include "needle/model/fused_layer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "needle/core/error.h"
#include "needle/model/head_attention.h"
#include "needle/model/product.h"
#include "needle/model/row_ops.h"

namespace needle {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

torch::Tensor rows_of(const torch::Tensor& x) { return x.view({-1, x.size(-1)}); }

// x + sigmoid(gate) * attended W^T and its gradients; attended [N, H * D].
torch::Tensor gated_output(const torch::Tensor& x, const torch::Tensor& attended,
                           const torch::Tensor& weight, torch::ScalarType factors,
                           double openness) {
  const auto result = x.clone();
  product_into(rows_of(result), attended, weight.t(), factors, openness, 1.0);
  return result;
}

struct OutputGrad {
  torch::Tensor attended;  // [N, H * D]
  torch::Tensor weight;
  torch::Tensor gate;
};

OutputGrad gated_output_backward(const torch::Tensor& grad, const torch::Tensor& attended,
                                 const torch::Tensor& weight, torch::ScalarType factors,
                                 double openness) {
  OutputGrad result{.attended = product(grad, weight, factors, openness),
                    .weight = product(grad.t(), attended, factors, openness),
                    .gate = {}};
  // The sum over grad * (attended W^T) is that over (grad^T attended) * W.
  result.gate =
      result.weight.flatten().dot(weight.to(torch::kFloat32).flatten()) * (1.0 - openness);
  return result;
}

double openness_of(const torch::Tensor& gate) { return torch::sigmoid(gate).item<double>(); }

// What is constant of a sub-layer: no gradient reaches it.
struct LayerConstants {
  torch::Tensor in_weight;   // factor, of values quantised or not: [(H + 2K) D, d] or [H D, d]
  torch::Tensor out_weight;  // factor [d, H D]
  torch::Tensor cos, sin;
  AttentionRanges ranges;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;  // of the product: 0 for cross-attention
  bool recompute = false;     // keep the inputs alone and go forward again before going backward
  torch::ScalarType factors = torch::kFloat32;

  torch::Tensor passing(const torch::Tensor& matrix) const {
    return as_passing_factor(matrix, factors);
  }
};

HeadSource head_source(const torch::Tensor& projected, const torch::Tensor& x,
                       const torch::Tensor& q_scale, const torch::Tensor& k_scale,
                       const LayerConstants& layer) {
  return {.layout = {.length = x.size(1),
                     .heads = layer.heads,
                     .kv_heads = layer.kv_heads,
                     .dim = q_scale.size(0),
                     .stride = projected.size(1)},
          .B = x.size(0),
          .projected = projected,
          .q_scale = q_scale,
          .k_scale = k_scale,
          .cos = layer.cos,
          .sin = layer.sin};
}

// What lies between a sub-layer's input and its output projection.
struct Inner {
  torch::Tensor normed;       // factor [N, d]
  torch::Tensor inverse_rms;  // [N], of the norm
  torch::Tensor projected;
  Heads heads;             // cross-attention: k and v are the context's
  torch::Tensor attended;  // factor [N, H D]
  torch::Tensor weights;   // of the attention
};

Inner inner_of(const torch::Tensor& x, const torch::Tensor& norm_scale,
               const torch::Tensor& q_scale, const torch::Tensor& k_scale, const KeyValues& context,
               const LayerConstants& layer) {
  Inner inner;
  const Normed normed = norm_rows(x, norm_scale, layer.factors);
  inner.normed = normed.rows;
  inner.inverse_rms = normed.inverse_rms;
  inner.projected = product(inner.normed, layer.in_weight.t(), layer.factors);
  inner.heads = make_heads(head_source(inner.projected, x, q_scale, k_scale, layer));
  if (layer.kv_heads == 0) {
    inner.heads.k = context.keys;
    inner.heads.v = context.values;
  }
  const HeadAttention attention =
      head_attention(inner.heads.q, inner.heads.k, inner.heads.v, layer.ranges, layer.factors);
  inner.attended = rows_of(attention.attended);
  inner.weights = attention.weights;
  return inner;
}

class GatedAttention : public torch::autograd::Function<GatedAttention> {
 public:
  // in_weight, out_weight: the parameters, as gradients go to them. keys and values are
  // those of cross-attention, k_scale that of self-attention.
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const std::optional<torch::Tensor>& keys_if_cross,
                               const std::optional<torch::Tensor>& values_if_cross,
                               const torch::Tensor& norm_scale, const torch::Tensor& in_weight,
                               const torch::Tensor& q_scale,
                               const std::optional<torch::Tensor>& k_scale_if_self,
                               const torch::Tensor& out_weight, const torch::Tensor& gate,
                               const LayerConstants* layer) {
    (void)in_weight, (void)out_weight;
    const torch::Tensor none, keys = keys_if_cross.value_or(none),
                              values = values_if_cross.value_or(none),
                              k_scale = k_scale_if_self.value_or(none);
    const Inner inner =
        inner_of(x, norm_scale, q_scale, k_scale, {.keys = keys, .values = values}, *layer);
    const double openness = openness_of(gate);
    variable_list saved{x,
                        keys,
                        values,
                        norm_scale,
                        q_scale,
                        k_scale,
                        layer->in_weight,
                        layer->out_weight,
                        layer->cos,
                        layer->sin,
                        layer->ranges.table};
    if (!layer->recompute) {
      saved.insert(saved.end(),
                   {inner.normed, inner.inverse_rms, inner.projected, inner.heads.q, inner.heads.k,
                    inner.heads.v, inner.heads.inverse_rms, inner.attended, inner.weights});
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["openness"] = openness;
    context->saved_data["causal"] = layer->ranges.causal;
    context->saved_data["heads"] = layer->heads;
    context->saved_data["kv_heads"] = layer->kv_heads;
    context->saved_data["factors"] = static_cast<std::int64_t>(layer->factors);
    return gated_output(x, inner.attended, layer->out_weight, layer->factors, openness);
  }

  static variable_list backward(AutogradContext* context, variable_list outer) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &norm_scale = saved[3], &q_scale = saved[4], &k_scale = saved[5];
    auto& data = context->saved_data;
    const LayerConstants layer{.in_weight = saved[6],
                               .out_weight = saved[7],
                               .cos = saved[8],
                               .sin = saved[9],
                               .ranges = {.table = saved[10], .causal = data["causal"].toBool()},
                               .heads = data["heads"].toInt(),
                               .kv_heads = data["kv_heads"].toInt(),
                               .factors = static_cast<torch::ScalarType>(data["factors"].toInt())};
    const Inner inner = saved.size() > kInputs
                            ? kept(saved)
                            : inner_of(x, norm_scale, q_scale, k_scale,
                                       {.keys = saved[1], .values = saved[2]}, layer);
    const auto grad = rows_of(outer[0].contiguous());
    const OutputGrad output =
        gated_output_backward(layer.passing(grad), inner.attended, layer.out_weight, layer.factors,
                              data["openness"].toDouble());
    const HeadAttentionGrad heads = head_attention_backward(
        output.attended, inner.weights, inner.heads.q, inner.heads.k, inner.heads.v, layer.ranges);
    const bool self = layer.kv_heads > 0;
    const torch::Tensor none;
    auto projected_grad = torch::empty_like(inner.projected, layer.factors);
    const ScaleGrads scales = make_heads_backward(
        head_source(inner.projected, x, q_scale, k_scale, layer),
        {.q = heads.q, .k = self ? heads.k : none, .v = self ? heads.v : none, .inverse_rms = none},
        inner.heads.inverse_rms, projected_grad);
    const NormGrad input =
        norm_rows_backward(x, norm_scale, inner.inverse_rms,
                           product(projected_grad, layer.in_weight, layer.factors), grad);
    return {input.x.view(x.sizes()),
            self ? none : heads.k,
            self ? none : heads.v,
            input.scale,
            product(projected_grad.t(), inner.normed, layer.factors),
            scales.q,
            self ? scales.k : none,
            output.weight,
            output.gate,
            none};
  }

 private:
  static constexpr std::size_t kInputs = 11;

  static Inner kept(const variable_list& saved) {
    return {.normed = saved[11],
            .inverse_rms = saved[12],
            .projected = saved[13],
            .heads = {.q = saved[14], .k = saved[15], .v = saved[16], .inverse_rms = saved[17]},
            .attended = saved[18],
            .weights = saved[19]};
  }
};

// Keys and values of all layers. One row of the product: k heads, v heads of the first layer, then
// of the next.
class CrossKeysValues : public torch::autograd::Function<CrossKeysValues> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& encoder_out,
                               const torch::Tensor& weight, const torch::Tensor& k_scales,
                               const torch::Tensor& value, std::int64_t kv_heads,
                               torch::ScalarType factors) {
    (void)weight;
    const auto source = as_factor(rows_of(encoder_out), factors);  // [N, d]
    const auto projected = product(source, value.t(), factors);    // [N, layers * 2 K D]
    variable_list saved{encoder_out, k_scales, value, projected, source};
    variable_list results;
    for (std::int64_t i = 0; i < k_scales.size(0); ++i) {
      const Heads heads = make_heads(source_of(projected, encoder_out, k_scales, i, kv_heads));
      results.insert(results.end(), {heads.k, heads.v});
      saved.push_back(heads.inverse_rms);
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["kv_heads"] = kv_heads;
    context->saved_data["factors"] = static_cast<std::int64_t>(factors);
    return results;
  }

  static variable_list backward(AutogradContext* context, variable_list outer) {
    const auto saved = context->get_saved_variables();
    const auto &encoder_out = saved[0], &k_scales = saved[1], &value = saved[2],
               &projected = saved[3];
    const auto kv_heads = context->saved_data["kv_heads"].toInt();
    const auto factors = static_cast<torch::ScalarType>(context->saved_data["factors"].toInt());
    const auto projected_grad = torch::empty_like(projected, factors);
    std::vector<torch::Tensor> scale_grads;
    for (std::int64_t i = 0; i < k_scales.size(0); ++i) {
      const HeadSource source = source_of(projected, encoder_out, k_scales, i, kv_heads);
      const auto grad_of = [&](const torch::Tensor& grad) {
        return grad.defined() ? grad.contiguous() : empty_heads(source, kv_heads).zero_();
      };
      const auto place = static_cast<std::size_t>(2 * i);
      auto columns = columns_of(projected_grad, k_scales, i, kv_heads);
      scale_grads.push_back(make_heads_backward(source,
                                                {.q = {},
                                                 .k = grad_of(outer[place]),
                                                 .v = grad_of(outer[place + 1]),
                                                 .inverse_rms = {}},
                                                saved[5 + static_cast<std::size_t>(i)], columns)
                                .k);
    }
    return {product(projected_grad, value, factors).view(encoder_out.sizes()),
            product(projected_grad.t(), saved[4], factors),
            torch::stack(scale_grads),
            torch::Tensor(),
            torch::Tensor(),
            torch::Tensor()};
  }

 private:
  static torch::Tensor columns_of(const torch::Tensor& rows, const torch::Tensor& k_scales,
                                  std::int64_t layer, std::int64_t kv_heads) {
    const auto width = 2 * kv_heads * k_scales.size(1);
    return rows.narrow(1, layer * width, width);
  }

  static HeadSource source_of(const torch::Tensor& projected, const torch::Tensor& encoder_out,
                              const torch::Tensor& k_scales, std::int64_t layer,
                              std::int64_t kv_heads) {
    return {.layout = {.length = encoder_out.size(1),
                       .kv_heads = kv_heads,
                       .dim = k_scales.size(1),
                       .stride = projected.size(1)},
            .B = encoder_out.size(0),
            .projected = columns_of(projected, k_scales, layer, kv_heads),
            .k_scale = k_scales[layer]};
  }
};

class Norm : public torch::autograd::Function<Norm> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& scale) {
    const Normed normed = norm_rows(x, scale);
    context->save_for_backward({x, scale, normed.inverse_rms});
    return normed.rows.view(x.sizes());
  }

  static variable_list backward(AutogradContext* context, variable_list outer) {
    const auto saved = context->get_saved_variables();
    const NormGrad grad = norm_rows_backward(saved[0], saved[1], saved[2],
                                             rows_of(outer[0].contiguous()), torch::Tensor());
    return {grad.x.view(saved[0].sizes()), grad.scale};
  }
};

// The weights as they enter the products, without history.
torch::Tensor value_of(KernelLinear& linear, torch::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  return as_passing_factor(linear->weight_path(linear->weight, torch::kFloat32).detach(), dtype);
}

// One matrix of several: what gradients go to, and the values in the product.
struct Stacked {
  torch::Tensor parameter;
  torch::Tensor value;
};
Stacked stack_weights(const std::vector<KernelLinear*>& linears, torch::ScalarType dtype) {
  std::vector<torch::Tensor> parameters, values;
  bool quantized = false;
  for (KernelLinear* linear : linears) {
    parameters.push_back((*linear)->weight);
    values.push_back(value_of(*linear, dtype));
    quantized = quantized || (*linear)->weight_path.mode() != FakeQuant::kNone;
  }
  const auto parameter = torch::cat(parameters);
  const bool as_they_are = !quantized && values.front().scalar_type() == torch::kFloat32;
  return {.parameter = parameter, .value = as_they_are ? parameter.detach() : torch::cat(values)};
}

void check_stream(const torch::Tensor& x) {
  NEEDLE_CHECK(x.scalar_type() == torch::kFloat32 && x.device().is_cpu(),
               "fused layers take a stream of float32 on the CPU, not {} on {}",
               c10::toString(x.scalar_type()), x.device().str());
}

}  // namespace

torch::Tensor fused_self_attention(GatedSelfAttentionImpl& layer, const torch::Tensor& x,
                                   const AttentionMask& mask, const Rope& rope) {
  check_stream(x);
  auto& attention = *layer.attention;
  const Stacked in = stack_weights({&attention.q_proj, &attention.k_proj, &attention.v_proj},
                                   mask.layers().factors);
  const auto dim = attention.q_norm->scale.size(0);
  const LayerConstants constants{.in_weight = in.value,
                                 .out_weight = value_of(attention.out_proj, mask.layers().factors),
                                 .cos = rope.cos,
                                 .sin = rope.sin,
                                 .ranges = mask.ranges(),
                                 .heads = attention.q_proj->weight.size(0) / dim,
                                 .kv_heads = attention.k_proj->weight.size(0) / dim,
                                 .recompute = mask.layers().recompute,
                                 .factors = mask.layers().factors};
  const std::optional<torch::Tensor> none, k_scale = attention.k_norm->scale;
  return GatedAttention::apply(x.contiguous(), none, none, layer.norm->scale, in.parameter,
                               attention.q_norm->scale, k_scale, attention.out_proj->weight,
                               layer.gate, &constants);
}

torch::Tensor fused_cross_attention(GatedCrossAttentionImpl& layer, const torch::Tensor& x,
                                    const KeyValues& context, const AttentionMask& mask) {
  check_stream(x);
  auto& attention = *layer.attention;
  const LayerConstants constants{
      .in_weight = value_of(attention.q_proj, mask.layers().factors),
      .out_weight = value_of(attention.out_proj, mask.layers().factors),
      .cos = {},
      .sin = {},
      .ranges = mask.ranges(),
      .heads = attention.q_proj->weight.size(0) / attention.q_norm->scale.size(0),
      .recompute = mask.layers().recompute,
      .factors = mask.layers().factors};
  const std::optional<torch::Tensor> none, keys = context.keys, values = context.values;
  return GatedAttention::apply(x.contiguous(), keys, values, layer.norm->scale,
                               attention.q_proj->weight, attention.q_norm->scale, none,
                               attention.out_proj->weight, layer.gate, &constants);
}

std::vector<KeyValues> fused_cross_keys_values(std::vector<Attention> layers,
                                               const torch::Tensor& encoder_out,
                                               torch::ScalarType factors) {
  check_stream(encoder_out);
  std::vector<KernelLinear*> linears;
  std::vector<torch::Tensor> scales;
  for (Attention& layer : layers) {
    linears.insert(linears.end(), {&layer->k_proj, &layer->v_proj});
    scales.push_back(layer->k_norm->scale);
  }
  const Stacked weights = stack_weights(linears, factors);
  const auto k_scales = torch::stack(scales);  // [layers, D]
  const auto kv_heads = layers.front()->k_proj->weight.size(0) / k_scales.size(1);
  const variable_list heads = CrossKeysValues::apply(encoder_out.contiguous(), weights.parameter,
                                                     k_scales, weights.value, kv_heads, factors);
  std::vector<KeyValues> result;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    result.push_back({.keys = heads[2 * i], .values = heads[2 * i + 1]});
  }
  return result;
}

torch::Tensor fused_norm(ZCRMSNormImpl& norm, const torch::Tensor& x) {
  check_stream(x);
  return Norm::apply(x.contiguous(), norm.scale);
}

}  // namespace needle
