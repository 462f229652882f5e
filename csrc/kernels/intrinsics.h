// The compiler's names of instructions, where the kernels' vectors have none. Their header brings memory allocation, and with it the C++
// library's inline functions, compiled for this instruction set (vec.h says why not): what it includes for that is taken as included.
#pragma once

#define _MM_MALLOC_H_INCLUDED  // GCC's
#define __MM_MALLOC_H          // clang's
#include <immintrin.h>
