#include "needle/export/needle_rs.h"

#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/quant/needle_rs_file.h"
#include "needle/quant/weights_file.h"
#include "needle/text/model_proto.h"

namespace needle {

void export_needle_rs(const Needle& model, const Tokenizer& tokenizer, const PromptConfig& prompt,
                      const std::filesystem::path& folder) {
  if (tokenizer.vocab_size() != model->config().vocab_size) {
    throw ConfigError(
        format("the tokenizer has {} pieces, the model {}: they do not belong together",
               tokenizer.vocab_size(), model->config().vocab_size));
  }
  NeedleRsModel to{.config = model->config(),
                   .max_enc_len = prompt.max_enc_len,
                   .max_dec_len = prompt.max_dec_len,
                   .has_contrastive_head = true};
  for (const auto& [name, parameter] : named_parameters(model)) {
    const torch::Tensor host = to_host(parameter.to(torch::kFloat32));
    to.parameters.emplace(
        name, std::vector<float>(host.data_ptr<float>(), host.data_ptr<float>() + host.numel()));
  }
  for (const ModelProtoPiece& piece :
       read_model_proto(tokenizer.model_bytes(), "tokenizer").pieces) {
    to.vocabulary.emplace_back(piece.text, piece.score);
  }
  write_needle_rs(to, folder / "needle.safetensors", folder / "vocab.txt");
}

ImportedModel import_needle_rs(const std::filesystem::path& weights,
                               const std::filesystem::path& vocabulary) {
  NeedleRsModel from = read_needle_rs(weights, vocabulary);
  Needle model(from.config);
  NamedTensors values;
  for (const TensorSpec& spec : expected_tensors(from.config)) {
    values.emplace(spec.name,
                   torch::from_blob(from.parameters.at(spec.name).data(), spec.shape).clone());
  }
  assign_parameters(model, values, weights.string());
  model->eval();
  std::vector<VocabularyPiece> pieces;
  for (auto& [text, score] : from.vocabulary) {
    pieces.push_back({.text = std::move(text), .score = score});
  }
  return {
      .model = std::move(model),
      .tokenizer = Tokenizer::from_bytes(model_proto_of_vocabulary(pieces), vocabulary.string()),
      .prompt = {.max_enc_len = from.max_enc_len, .max_dec_len = from.max_dec_len},
      .has_contrastive_head = from.has_contrastive_head};
}

}  // namespace needle
