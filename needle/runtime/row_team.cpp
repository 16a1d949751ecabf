#include "needle/runtime/row_team.h"

namespace needle::runtime {
namespace {

bool all_int4(const AttentionWeights& weights) {
  return weights.q_proj.is_int4() && weights.k_proj.is_int4() && weights.v_proj.is_int4() &&
         weights.out_proj.is_int4();
}

}  // namespace

bool all_int4(const Model& model) {
  const auto matrices = [](const auto& layer) {
    return !layer.ffn || (layer.ffn->gate_proj.is_int4() && layer.ffn->up_proj.is_int4() &&
                          layer.ffn->down_proj.is_int4());
  };
  return std::ranges::all_of(model.encoder,
                             [&](const EncoderLayer& layer) {
                               return all_int4(layer.self.attention) && matrices(layer);
                             }) &&
         std::ranges::all_of(model.decoder, [](const DecoderLayer& layer) {
           return all_int4(layer.cross.attention);
         });
}

}  // namespace needle::runtime
