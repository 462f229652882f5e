// Which instruction set the kernels of this process use, and what a core can do with it.
#pragma once

#include <string>
#include <vector>

#include "tensor.h"

namespace sstkern {

// "baseline", "avx2", "avx512" or "avx512_bf16": the best this machine has, or what SSTKERN_CPU_CAPABILITY names. Throws ValueError where
// that is unknown or the machine lacks it.
const std::string& cpu_capability();

// That and what it contains, best first, for tensors of type `given`: the products of avx512_bf16 are for bfloat16 tensors only.
const std::vector<std::string>& allowed_levels(ScalarType given);

// The one of these for a call with `units` hidden units, and backward with `inputs` input features: 0 forward. It is the best one, but
// where the units fill half a vector of AVX-512 it is AVX2, which is faster there and has the same bits, unless SSTKERN_CPU_CAPABILITY asks
// for AVX-512.
const std::string& level_for(ScalarType given, int64_t units, int64_t inputs);

// float32 multiply-adds on registers alone, all threads, in GFLOP/s: what no kernel can exceed.
double cpu_peak();

// Reading `bytes` of memory again and again, each thread its part, in GB/s.
double cpu_bandwidth(int64_t bytes);

}  // namespace sstkern
