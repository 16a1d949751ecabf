#include "needle/model/range_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "needle/core/error.h"

namespace needle {
namespace {

struct Range {
  std::int64_t row = 0;
  std::int64_t first_query = 0;
  std::int64_t queries = 0;  // t
  std::int64_t first_key = 0;
  std::int64_t keys = 0;  // s
};
constexpr std::int64_t kColumns = 5;

std::vector<Range> read_table(const torch::Tensor& table) {
  std::vector<Range> ranges;
  const auto* value = table.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < table.size(0); ++i, value += kColumns) {
    ranges.push_back({value[0], value[1], value[2], value[3], value[4]});
  }
  return ranges;
}

torch::Tensor make_table(const std::vector<Range>& ranges) {
  std::vector<std::int64_t> values;
  for (const Range& range : ranges) {
    values.insert(values.end(),
                  {range.row, range.first_query, range.queries, range.first_key, range.keys});
  }
  return torch::tensor(values, torch::kInt64).view({-1, kColumns});
}

// A run of equal segments in one row.
struct Run {
  std::int64_t segment = 0;
  std::int64_t start = 0;
  std::int64_t length = 0;
};

std::vector<Run> runs_of(const std::int64_t* segments, std::int64_t length) {
  std::vector<Run> runs;
  for (std::int64_t i = 0; i < length; ++i) {
    if (runs.empty() || runs.back().segment != segments[i]) {
      runs.push_back({.segment = segments[i], .start = i});
    }
    ++runs.back().length;
  }
  return runs;
}

// Where each segment but padding lies; nothing if one has two runs.
std::optional<std::map<std::int64_t, Run>> places_of(const std::vector<Run>& runs) {
  std::map<std::int64_t, Run> places;
  for (const Run& run : runs) {
    if (run.segment > 0 && !places.emplace(run.segment, run).second) {
      return std::nullopt;
    }
  }
  return places;
}

// [H, T, D] of a row -> the range's queries as [K, G * t, D].
torch::Tensor stacked(const torch::Tensor& heads, const Range& range, std::int64_t kv_heads) {
  return heads.narrow(1, range.first_query, range.queries).reshape({kv_heads, -1, heads.size(2)});
}

class RangeAttention : public torch::autograd::Function<RangeAttention> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& q,
                               const torch::Tensor& k, const torch::Tensor& v,
                               const torch::Tensor& table, bool causal) {
    const auto kv_heads = k.size(1);
    const auto head_dim = q.size(3);
    const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    const auto later = causal ? torch::ones({q.size(2), k.size(2)}, torch::kBool).triu_(1)
                              : torch::Tensor();  // true: the key comes after the query
    // [B, T, H, D] in memory, which is what the output projection reads.
    const auto out = torch::empty({q.size(0), q.size(2), q.size(1), head_dim}, v.options());
    torch::autograd::variable_list saved{q, k, v, table};
    for (const Range& range : read_table(table)) {
      const auto values = v[range.row];  // [K, S, D]
      torch::Tensor attended;            // [K, G * t, D]
      if (range.keys == 0) {
        saved.emplace_back();
        attended = values.mean(1, /*keepdim=*/true)
                       .expand({kv_heads, q.size(1) / kv_heads * range.queries, head_dim});
      } else {
        const auto rows = stacked(q[range.row], range, kv_heads);
        const auto keys = k[range.row].narrow(1, range.first_key, range.keys);  // [K, s, D]
        auto scores = torch::bmm(rows, keys.mT()).mul_(scale);                  // [K, G * t, s]
        if (causal) {
          scores.view({kv_heads, -1, range.queries, range.keys})
              .masked_fill_(later.narrow(0, 0, range.queries).narrow(1, 0, range.keys),
                            -std::numeric_limits<double>::infinity());
        }
        const auto weights = torch::softmax(scores, -1);
        attended = torch::bmm(weights, values.narrow(1, range.first_key, range.keys));
        saved.push_back(weights);
      }
      out[range.row]
          .narrow(0, range.first_query, range.queries)
          .transpose(0, 1)  // [H, t, D]
          .copy_(attended.reshape({q.size(1), range.queries, head_dim}));
    }
    context->save_for_backward(std::move(saved));
    return out.transpose(1, 2);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list outer) {
    const auto saved = context->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const auto kv_heads = k.size(1);
    const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
    const auto q_grad = torch::zeros_like(q, torch::MemoryFormat::Contiguous);
    const auto k_grad = torch::zeros_like(k, torch::MemoryFormat::Contiguous);
    const auto v_grad = torch::zeros_like(v, torch::MemoryFormat::Contiguous);
    std::size_t next = 4;
    for (const Range& range : read_table(saved[3])) {
      const auto& weights = saved[next++];  // [K, G * t, s]
      const auto grad = stacked(outer[0][range.row], range, kv_heads);
      if (range.keys == 0) {
        v_grad[range.row] += grad.sum(1, /*keepdim=*/true) / static_cast<double>(v.size(2));
        continue;
      }
      const auto narrowed = [&](const torch::Tensor& rows) {
        return rows[range.row].narrow(1, range.first_key, range.keys);
      };
      narrowed(v_grad) += torch::bmm(weights.mT(), grad);
      const auto weights_grad = torch::bmm(grad, narrowed(v).mT());
      const auto scores_grad =
          at::_softmax_backward_data(weights_grad, weights, -1, weights.scalar_type()).mul_(scale);
      q_grad[range.row]
          .narrow(1, range.first_query, range.queries)
          .copy_(torch::bmm(scores_grad, narrowed(k)).view({q.size(1), range.queries, q.size(3)}));
      narrowed(k_grad) += torch::bmm(scores_grad.mT(), stacked(q[range.row], range, kv_heads));
    }
    return {q_grad, k_grad, v_grad, torch::Tensor(), torch::Tensor()};
  }
};

}  // namespace

std::optional<AttentionRanges> padding_ranges(std::int64_t queries, const torch::Tensor& tokens,
                                              std::int64_t pad_id, bool causal) {
  const auto ids = tokens.cpu().contiguous();
  std::vector<Range> ranges;
  for (std::int64_t row = 0; row < ids.size(0); ++row) {
    const auto* first = ids.const_data_ptr<std::int64_t>() + row * ids.size(1);
    const auto* last = first + ids.size(1);
    const auto* padding = std::find(first, last, pad_id);
    if (std::any_of(padding, last, [&](std::int64_t id) { return id != pad_id; })) {
      return std::nullopt;
    }
    ranges.push_back({.row = row, .queries = queries, .keys = padding - first});
  }
  return AttentionRanges{.table = make_table(ranges), .causal = causal};
}

std::optional<AttentionRanges> segment_ranges(const torch::Tensor& query_segments,
                                              const torch::Tensor& key_segments, bool causal) {
  const auto of_queries = query_segments.to(torch::kCPU, torch::kInt64).contiguous();
  const auto of_keys = key_segments.to(torch::kCPU, torch::kInt64).contiguous();
  const auto runs = [](const torch::Tensor& segments, std::int64_t row) {
    return runs_of(segments.const_data_ptr<std::int64_t>() + row * segments.size(1),
                   segments.size(1));
  };
  std::vector<Range> ranges;
  for (std::int64_t row = 0; row < of_queries.size(0); ++row) {
    const std::vector<Run> query_runs = runs(of_queries, row);
    const auto places = places_of(runs(of_keys, row));
    if (!places || !places_of(query_runs)) {
      return std::nullopt;
    }
    for (const Run& run : query_runs) {
      const auto place = places->find(run.segment);
      const Run keys = place == places->end() ? Run{} : place->second;
      ranges.push_back({row, run.start, run.length, keys.start, keys.length});
    }
  }
  return AttentionRanges{.table = make_table(ranges), .causal = causal};
}

torch::Tensor range_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const AttentionRanges& ranges) {
  NEEDLE_CHECK(q.device().is_cpu(), "range attention is for the CPU, the queries are on {}",
               q.device().str());
  NEEDLE_CHECK(q.size(1) % k.size(1) == 0, "{} query heads for {} kv heads", q.size(1), k.size(1));
  return RangeAttention::apply(q, k, v, ranges.table, ranges.causal);
}

}  // namespace needle
