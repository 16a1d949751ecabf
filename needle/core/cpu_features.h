// What the processor does well, where a flag alone does not say it.
#pragma once

namespace needle {

// Whether products of bfloat16 are faster than those of float32 here: with AMX, or with AVX512_BF16
// on AMD (Zen 4 and later: twice the rate). An Intel core without AMX has the instructions too, at
// half the rate of float32 (measured on one of 2023: 89 against 179 GFLOP/s a core). False on other
// processors.
bool has_fast_bfloat16();

// AVX512-FP16, with F, DQ and VL.
bool has_avx512_fp16();

}  // namespace needle
