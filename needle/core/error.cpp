#include "needle/core/error.h"

namespace needle::internal {

void check_failed(const char* file, int line, const char* condition, std::string message) {
  throw Error(format("{}:{}: check failed: {}: {}", file, line, condition, message));
}

}  // namespace needle::internal
