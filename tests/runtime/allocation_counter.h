// Counts the allocations of this test binary, so that a test can show that a step makes none.
#pragma once

namespace needle::test {

long allocation_count();

}  // namespace needle::test
