// Passes over gradients that do two things at once, since the memory is what they wait for. One
// thread; sums are taken in a fixed order, whatever the alignment.
#pragma once

#include <cstddef>
#include <span>

namespace needle {

// Copies; returns the sum of what was copied: finite if (overflow aside) every number is.
float copy_and_sum(std::span<const float> from, float* to);

// target = parts[0] + parts[1] + ..., each as long as `target`, which may be one of them. Returns
// the sum of squares of the result.
double add_up(std::span<const float* const> parts, std::span<float> target);

}  // namespace needle
