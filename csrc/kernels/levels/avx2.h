// AVX2 with FMA and F16C. The pragma, not a compiler flag, selects the instruction set: setuptools has no flags per file. levels/end.h ends
// it.
#define SSTKERN_TARGET
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define SSTKERN_LEVEL avx2
#define SSTKERN_VECTOR_BYTES 32
#define SSTKERN_VECTOR_REGISTERS 16
#define SSTKERN_FMA
#define SSTKERN_HARDWARE_FLOAT16
