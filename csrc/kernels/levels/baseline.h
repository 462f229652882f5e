// The instruction set every machine of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define SSTKERN_LEVEL baseline
#define SSTKERN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define SSTKERN_VECTOR_REGISTERS 32
#define SSTKERN_FMA
#else
#define SSTKERN_VECTOR_REGISTERS 16
#endif
