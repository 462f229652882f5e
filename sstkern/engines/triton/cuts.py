"""Sequences that begin anew at some of their steps, in a time loop.

A *cut* lies between two steps of a sequence, where the later one, by number, begins anew. Whoever stores a state stores what the next step
finds: behind a cut that is not what the step left. So nothing else of a kernel knows of cuts, whatever it reads and in whichever
program. Backward the same holds of gradients: 0 is what the next step finds, and what came to the cut is the gradient of the state
that the piece began with.
"""

import triton
import triton.language as tl


@triton.jit
def begins_anew(marks, step, slots, length, B):
    """Of each slot whether there is a cut before `step`. marks: (T, B), not 0 where a sequence begins anew, by slot."""
    of_each = step + tl.zeros_like(length)
    there = (of_each > 0) & (of_each < length)
    return tl.load(marks + step.to(tl.int64) * B + slots, mask=there, other=0) != 0
