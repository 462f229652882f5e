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

}  // namespace sstkern
