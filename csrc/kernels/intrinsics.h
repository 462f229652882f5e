// The compiler's names of instructions, where the kernels' vectors have none. Their header brings memory allocation, and with it the C++
// library's inline functions, compiled for this instruction set (vec.h says why not): what it includes for that is taken as included.
#pragma once

#define _MM_MALLOC_H_INCLUDED  // GCC's
#define __MM_MALLOC_H          // clang's
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // what GCC 12 says of its own undefined vectors
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
