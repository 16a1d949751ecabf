// How an answer came about, as JSON for people and pages.
#pragma once

#include <string_view>

#include "needle/calls/json_value.h"
#include "needle/decode/generate.h"

namespace needle {

// {"probability","no_call","outside"?,"calls":[{"name","probability","name_probability",
//  "arguments":[{"name","probability","query_span":[begin,end] or null}]}]}
// `outside` only with a trace; query_span counts bytes of the query that the value comes from.
JsonValue to_json(const AnswerConfidence& confidence, const CallResult& result,
                  std::string_view query);

// One object a token, eos included: {"id","piece","kind":"forced"|"chosen"|"free","allowed",
// "probability","outside"?,"alternatives":[{"id","piece","probability","allowed"}]}. "free":
// nothing was masked. Needs a result with steps.
JsonValue trace_json(const CallResult& result, const Tokenizer& tokenizer);

}  // namespace needle
