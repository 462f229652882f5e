// AVX-512. The pragma, not a compiler flag, selects the instruction set: setuptools has no flags per file. levels/end.h ends it.
#define SSTKERN_TARGET
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma")
#endif
#define SSTKERN_LEVEL avx512
#define SSTKERN_VECTOR_BYTES 64
#define SSTKERN_VECTOR_REGISTERS 32
#define SSTKERN_FMA
#define SSTKERN_HARDWARE_FLOAT16
