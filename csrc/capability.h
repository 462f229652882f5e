// Which instruction set the kernels of this process use.
#pragma once

#include <string>

#include "kernels.h"

namespace sstkern {

// "baseline", "avx2" or "avx512": the best this machine has, or what SSTKERN_CPU_CAPABILITY names. Throws ValueError where that is
// unknown or the machine lacks it.
const std::string& cpu_capability();

template <class T>
Kernels<T> kernels_for(Cell cell);

// float32 multiply-adds on registers alone, all threads, in GFLOP/s: what no kernel can exceed.
double cpu_peak();

// Reading `bytes` of memory again and again, each thread its part, in GB/s.
double cpu_bandwidth(int64_t bytes);

}  // namespace sstkern
