// AVX512-BF16, for bfloat16 tensors: AVX-512's kernels, with products of bfloat16 pairs. levels/end.h ends the pragma.
#define SSTKERN_TARGET
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,fma")
#endif
#define SSTKERN_LEVEL avx512_bf16
#define SSTKERN_VECTOR_BYTES 64
#define SSTKERN_VECTOR_REGISTERS 32
#define SSTKERN_BFLOAT16
#define SSTKERN_FMA
#define SSTKERN_HARDWARE_FLOAT16
