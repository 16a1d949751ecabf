// Values made comparable across spellings, as the reference's benchmark does (specification,
// section 9).
#pragma once

#include "needle/calls/json_value.h"

namespace needle {

// A text that is a number becomes Python's float of it ("74.0060" -> "74.006"); other text is
// stripped, lower-cased and loses a leading "at " or "today at "; floats become text; integers,
// booleans, null, lists and objects stay.
JsonValue loosen_value(const JsonValue& value);

}  // namespace needle
