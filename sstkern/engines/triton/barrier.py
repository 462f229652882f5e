"""A barrier among the programs that share a sequence: each adds 1 to a counter when its part of a step is written, and waits for the sum.

The counter only grows within a launch, so no program can meet a later step's count early, and it is new, zeroed memory in every launch.
All programs must be resident at once: the launch is cooperative.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter, TARGET: tl.constexpr):
    """Everything this program stored before is visible to whoever sees the new count."""
    if TARGET == "hip":
        # A block barrier on AMD waits for all threads, not for their stores.
        tl.inline_asm_elementwise("s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1", "=v,v", [0], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()  # one thread adds to the counter, after the stores of all
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, count, TARGET: tl.constexpr):
    seen = _read(counter, TARGET)
    while seen < count:
        seen = _read(counter, TARGET)


@triton.jit
def _read(counter, TARGET: tl.constexpr):
    if TARGET == "cuda":
        # Every thread polls for itself. An atomic that returns a scalar hands it from one thread to all, two block barriers a poll.
        return tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [counter.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )
    return tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
