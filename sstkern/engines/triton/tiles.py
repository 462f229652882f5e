"""What generated kernels (`sstkern.program.gpu`) are made of: tiles of (units, rows) of a program's rows, products, reductions, and the
points where programs meet.

A row's numbers follow each other; `width` is how far rows are apart. What another program may have written in this launch is loaded past
the multiprocessor's own cache (".cg").
"""

import triton
import triton.language as tl

from sstkern.engines.triton.barrier import arrive, wait
from sstkern.engines.triton.cuts import begins_anew
from sstkern.engines.triton.math import as_operand


@triton.jit
def load(at, rows, width, start, units, count, there, SHARED: tl.constexpr):
    """The numbers start + units of rows, zero for units from `count` on and for rows that are not there."""
    place = at + rows[None, :] * width + (start + units)[:, None]
    mask = (units < count)[:, None] & there[None, :]
    if SHARED:
        return tl.load(place, mask=mask, other=0, cache_modifier=".cg")
    return tl.load(place, mask=mask, other=0)


@triton.jit
def store(at, rows, width, start, units, count, there, value):
    place = at + rows[None, :] * width + (start + units)[:, None]
    mask = (units < count)[:, None] & there[None, :]
    tl.store(place, tl.where(mask, value, 0).to(at.dtype.element_ty), mask=mask)


@triton.jit
def cut_after(marks, t, slots, length, B, REVERSE: tl.constexpr):
    """Of each slot whether there is a cut between step t and the next one of the loop (`cuts`)."""
    return begins_anew(marks, t if REVERSE else t + 1, slots, length, B)


@triton.jit
def store_state(at, before, after, anew, width, start, units, count, present, now, cut, value, CUTS: tl.constexpr, BACKWARD: tl.constexpr):
    """Stores a state after a step: where a sequence has no such step, what it was before. With CUTS, behind a cut, what its rows `anew`
    have; BACKWARD 0, and what the state would have been is added to those.

    What another number takes the place of is loaded there only.
    """
    other = ~now
    rows = before
    if CUTS:
        other = other | cut
        rows = tl.where(cut, anew, before)
    found = load(at, rows, width, start, units, count, present & other, True)
    if CUTS and BACKWARD:
        # By the one program that has these units, step after step: the order of a sum is always the same.
        store(at, anew, width, start, units, count, cut, found + value)
        found = tl.where(cut[None, :], tl.zeros_like(found), found)
    store(at, after, width, start, units, count, present, tl.where(other[None, :], found, value))


@triton.jit
def sequences(lengths, slots, T, B, HAS_LENGTHS: tl.constexpr, ONE_STEP: tl.constexpr):
    """Each slot's length, and how many steps this tile has: a launch of one step counts from T for all tiles."""
    if HAS_LENGTHS:
        length = tl.load(lengths + slots, mask=slots < B, other=0)
        steps = T if ONE_STEP else tl.max(length, axis=0)
    else:
        length = tl.where(slots < B, T, 0)
        steps = T
    return length, steps


@triton.jit
def time_step(s, steps, REVERSE: tl.constexpr):
    """Of the loop's step s."""
    left = steps - 1 - s
    return left if REVERSE else steps - 1 - left


@triton.jit
def first_row(offsets, t, B, HAS_LENGTHS: tl.constexpr):
    """Of step t."""
    return tl.load(offsets + t).to(tl.int64) if HAS_LENGTHS else t.to(tl.int64) * B


@triton.jit
def begin(counter, count, EXCHANGES: tl.constexpr, TARGET: tl.constexpr):
    """What all programs of the task stored before they met for the count-th time is there."""
    if EXCHANGES:
        wait(counter, count, TARGET)


@triton.jit
def finish(counter, EXCHANGES: tl.constexpr, TARGET: tl.constexpr):
    if EXCHANGES:
        arrive(counter, TARGET)
    else:
        tl.debug_barrier()  # among the threads of this program


@triton.jit
def gate_rows(units, count, GATES: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a product's matrix, one gate of `count` units after the other, and whether there is such a row. PADDED: a power of two."""
    gate = tl.arange(0, PADDED)[:, None] + tl.zeros_like(units)[None, :]
    unit = units[None, :] + tl.zeros_like(gate)
    there = (unit < count) & (gate < GATES)
    return tl.reshape(gate * count + unit, (PADDED * units.shape[0],)), tl.reshape(there, (PADDED * units.shape[0],))


@triton.jit
def stacked(first, weight, rows, before, row_stride):
    """Addresses of a product's rows: `first` up to row `before`, and from there those of another weight."""
    return tl.where(rows < before, first, addresses(weight, rows - before, row_stride))


@triton.jit
def addresses(weight, rows, row_stride):
    return weight + rows.to(tl.int64) * row_stride


@triton.jit
def _matrix(rows, there, k, depth, k_stride):
    place = rows[:, None] + k.to(tl.int64)[None, :] * k_stride
    return tl.load(place, mask=there[:, None] & (k < depth)[None, :], other=0.0)


@triton.jit
def kept(rows, there, depth, k_stride, KEEP: tl.constexpr, BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """These rows of a product's matrix, by their addresses, for all time steps, in chunks of BLOCK_K columns; nothing unless KEEP."""
    chunks = ()
    if KEEP:
        for k in tl.static_range(CHUNKS):
            part = _matrix(rows, there, k * BLOCK_K + tl.arange(0, BLOCK_K), depth, k_stride)
            chunks = chunks + (as_operand(part, rows.dtype.element_ty, PRECISION),)
    return chunks


@triton.jit
def product(
    chunks,
    rows,
    there,
    k_stride,
    operand,
    operand_rows,
    operand_width,
    start,
    depth,
    present,
    KEEP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    REAL: tl.constexpr,
):
    """(rows of the matrix, rows of the operand): the matrix is `kept`, or read anew."""
    STORED: tl.constexpr = rows.dtype.element_ty
    total = tl.zeros((rows.shape[0], present.shape[0]), dtype=REAL)
    if KEEP:
        # One address for all chunks, and constants beside it: with one for each the backward of an LSTM of 512 units with a projection
        # has 255 registers and spills, not 189.
        within = tl.arange(0, BLOCK_K)
        first = operand + operand_rows[None, :] * operand_width + (start + within)[:, None]
        for k in tl.static_range(CHUNKS):
            inside = (within < depth - k * BLOCK_K)[:, None] & present[None, :]
            this = tl.load(first + k * BLOCK_K, mask=inside, other=0, cache_modifier=".cg")
            total = tl.dot(chunks[k], as_operand(this, STORED, PRECISION), total, input_precision=PRECISION, out_dtype=REAL)
    else:
        for k in range(0, CHUNKS * BLOCK_K, BLOCK_K):
            within = k + tl.arange(0, BLOCK_K)
            part = as_operand(_matrix(rows, there, within, depth, k_stride), STORED, PRECISION)
            this = load(operand, operand_rows, operand_width, start, within, depth, present, True)
            total = tl.dot(part, as_operand(this, STORED, PRECISION), total, input_precision=PRECISION, out_dtype=REAL)
    return total


@triton.jit
def halves(total):
    """The first and the second half of a product's rows."""
    HALF: tl.constexpr = total.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(total, (2, HALF, total.shape[1])), (1, 2, 0)))


@triton.jit
def summed(
    a, a_rows, a_width, a_start, b, b_rows, b_width, b_start, count, there, TWO: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr
):
    """(1, rows): the sum of `count` numbers of each row, or of their products with others."""
    total = tl.zeros((there.shape[0],), dtype=REAL)
    for first in range(0, count, BLOCK):
        units = first + tl.arange(0, BLOCK)
        part = load(a, a_rows, a_width, a_start, units, count, there, True).to(REAL)
        if TWO:
            part = part * load(b, b_rows, b_width, b_start, units, count, there, True).to(REAL)
        total += tl.sum(part, axis=0)
    return total[None, :]


@triton.jit
def largest(a, a_rows, a_width, a_start, count, there, BLOCK: tl.constexpr, REAL: tl.constexpr):
    """(1, rows): NaN where one of the numbers is."""
    found = tl.full((there.shape[0],), float("-inf"), REAL)
    lost = tl.zeros((there.shape[0],), dtype=tl.int32)
    for first in range(0, count, BLOCK):
        units = first + tl.arange(0, BLOCK)
        part = load(a, a_rows, a_width, a_start, units, count, there, True).to(REAL)
        part = tl.where((units < count)[:, None], part, float("-inf"))
        lost = tl.maximum(lost, tl.max((part != part).to(tl.int32), axis=0))
        found = tl.maximum(found, tl.max(tl.where(part == part, part, float("-inf")), axis=0))
    return tl.where(lost != 0, float("nan"), found)[None, :].to(REAL)


@triton.jit
def cumulated(a, a_rows, a_width, a_start, count, there, BACK: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr):
    """(BLOCK, rows), from the last number to the first with BACK."""
    part = load(a, a_rows, a_width, a_start, tl.arange(0, BLOCK), count, there, True).to(REAL)
    return tl.cumsum(part, axis=0, reverse=BACK)


@triton.jit
def picked(a, a_rows, a_width, a_start, table, of_each, units, count, there, REAL: tl.constexpr):
    """(units, rows): for each unit the sum of the numbers of a row whose places the table (of_each, count) names; none is -1."""
    total = tl.zeros((units.shape[0], there.shape[0]), dtype=REAL)
    for j in range(of_each):
        place = tl.load(table + j * count + units, mask=units < count, other=-1)
        mask = (place >= 0)[:, None] & there[None, :]
        at = a + a_rows[None, :] * a_width + (a_start + place)[:, None]
        total += tl.load(at, mask=mask, other=0, cache_modifier=".cg").to(REAL)
    return total
