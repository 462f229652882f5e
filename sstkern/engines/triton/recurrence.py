"""The time loop, once forward and once backward, over any cell's step and derivative.

A program holds a tile of BLOCK_H hidden units by BLOCK_B rows of the batch, transposed: units are the tile's first dimension, so that the
recurrent product `weight_hh @ h` has gates as its rows, of which there are always the 64 a tensor core wants, and the batch, which may be
small, as its columns. How the product is computed is the SCHEDULE:

resident   one program has all units: h stays in its registers and weight_hh in its shared memory for the whole sequence.
grid       the units are split over programs that each keep their rows of weight_hh and exchange h, one barrier a step.
streamed   the same, reading weight_hh anew in every step.
stepwise   one launch a time step; the product is the caller's, and arrives in gates_h.

The backward needs dh = weight_hh^T @ dgates_h. A program has the rows of weight_hh whose dgates it computes, so it multiplies those: a part
of dh for every unit of the layer. The parts are exchanged, and each program sums those of its own units, in the same order every time.

T time steps, B batch, H hidden_size, D directions, G gates, S states, U programs that share the units. `tasks` are (direction, tile of
rows) pairs; a launch runs as many as it has slabs of memory for, to exchange in. Sequences are in the order of descending length, `slots`;
gates_x, saved and dgates have only rows for valid steps, those of step t from offsets[t] on, one per slot. Where PACKED, so have the output
and its gradient: they are (N, D * H). CUTS: sequences begin anew at some of their steps, as `marks` say (`cuts`); with zeros, or with ANEW
with states that are given.
"""

import triton
import triton.language as tl

from sstkern.engines.triton.barrier import arrive, wait
from sstkern.engines.triton.cuts import begins_anew
from sstkern.engines.triton.math import as_operand

# A kernel is compiled anew for an argument that is 1 or a multiple of 16, but for these.
_COUNTS = ["T", "B", "N", "M", "D", "first_step", "last_step", "first_task", "slabs"]


@triton.jit(do_not_specialize=_COUNTS)
def forward(
    gates_x,  # (D, N, G * H)
    gates_h,  # stepwise: (D, B, G * H), float32 or float64
    weight,  # (D, G * H, H)
    bias,  # (D, G * H): weight_hh's
    h_0,  # (D, B, H)
    c_0,  # (D, B, H): the second state, where a cell has one
    h_anew,  # (D, B, H): with which sequences begin anew
    c_anew,
    h_n,  # (D, B, H), to be written; may be h_0
    c_n,
    output,  # (T, B, D * H), or (N, D * H)
    c_output,  # the same of the second state
    saved,  # (D, M, SAVES * H)
    exchange,  # grid, streamed: (2, slabs, BLOCK_B, CHUNKS * BLOCK_K), of the weights' dtype; finite from column H on
    order,  # (B,) row of the batch in each slot
    lengths,  # (B,) by slot
    offsets,  # (T,)
    marks,  # (T, B), not 0 where the sequence of a slot begins anew with a step
    counters,  # (tasks,) zeros
    T,
    B,
    H,
    N,
    M,
    D,
    first_step,
    last_step,
    first_task,
    slabs,
    STEP: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SAVES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PACKED: tl.constexpr,
    CUTS: tl.constexpr,
    ANEW: tl.constexpr,
    EVERY: tl.constexpr,  # whether c_output is wanted
    SAVE: tl.constexpr,
    SCHEDULE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,  # of BLOCK_K columns, in weight_hh
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    REAL: tl.constexpr = _real(gates_x.dtype.element_ty)
    STORED: tl.constexpr = output.dtype.element_ty
    EXCHANGES: tl.constexpr = SCHEDULE == "grid" or SCHEDULE == "streamed"
    WIDTH: tl.constexpr = CHUNKS * BLOCK_K
    programs = tl.cdiv(H, BLOCK_H)
    task = first_task + tl.program_id(0) // programs
    direction = (task % D).to(tl.int64)
    units = (tl.program_id(0) % programs) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_B)
    first_slot = (task // D) * BLOCK_B
    slots = first_slot + columns
    rows, length, steps = _sequences(order, lengths, slots, T, B, HAS_LENGTHS, SCHEDULE)
    counter = counters + task
    slab = task - first_task
    mine = (units < H)[:, None] & (slots < B)[None, :]
    gates_at = columns[None, :] * (G * H) + units[:, None]
    saved_at = columns[None, :] * (SAVES * H) + units[:, None]

    # Offsets inside a step take 32 bits (the caller sees to it), those of a step 64.
    state_at = rows[None, :] * H + units[:, None]
    row_at = (columns if PACKED else rows)[None, :] * (D * H) + units[:, None]
    own = direction * B * H
    state = _states(h_0 + own, c_0 + own, state_at, mine, S, REAL)
    gate_bias = _gate_tiles(bias + direction * G * H + units[:, None] + 0 * columns[None, :], H, mine, G, HAS_BIAS, REAL)
    kept = ()
    if SCHEDULE == "resident" or SCHEDULE == "grid":
        for k in tl.static_range(CHUNKS):
            rows_of_weight = _weight_rows(weight + direction * G * H * H, units, k * BLOCK_K + tl.arange(0, BLOCK_K), H, G)
            kept = kept + (as_operand(rows_of_weight, STORED, PRECISION),)

    mine_at = columns[None, :] * WIDTH + units[:, None]
    chunk_at = columns[None, :] * WIDTH + tl.arange(0, BLOCK_K)[:, None]
    if EXCHANGES:
        tl.store(_exchange(exchange, 1, slab, slabs, WIDTH, BLOCK_B) + mine_at, as_operand(state[0], STORED, PRECISION), mask=mine)
        arrive(counter, TARGET)

    for s in range(first_step, tl.minimum(last_step, steps)):
        t = tl.where(direction == 0, s, steps - 1 - s)
        now = (t < length) & (slots < B)
        valid = (units < H)[:, None] & now[None, :]
        packed = _packed(offsets, t, B, HAS_LENGTHS) + first_slot
        gates_row = (direction * N + packed) * (G * H)
        saved_row = (direction * M + packed) * (SAVES * H)
        out_row = (_output_step(packed, t, B, PACKED) * D + direction) * H
        # Asked for before the wait, which hides their way from memory.
        x = _gate_tiles(gates_x + gates_row + gates_at, H, valid, G, True, REAL)
        if CUTS:
            cut = mine & begins_anew(marks, tl.where(direction == 0, t + 1, t), slots, length, B)[None, :]
            if ANEW:
                anew = _states(h_anew + own, c_anew + own, state_at, cut, S, h_anew.dtype.element_ty)
        if SCHEDULE == "stepwise":
            h = _gate_tiles(gates_h + direction * B * (G * H) + rows[None, :] * (G * H) + units[:, None], H, valid, G, True, REAL)
        else:
            total = tl.zeros((BLOCK_H * _padded(G), BLOCK_B), dtype=REAL)
            if SCHEDULE == "resident":
                total = tl.dot(kept[0], as_operand(state[0], STORED, PRECISION), total, input_precision=PRECISION, out_dtype=REAL)
            else:
                wait(counter, programs * (s - first_step + 1), TARGET)
                shared_h = _exchange(exchange, (s + 1) % 2, slab, slabs, WIDTH, BLOCK_B)
                if SCHEDULE == "grid":
                    next_h = tl.load(shared_h + chunk_at, cache_modifier=".cg")
                    for k in tl.static_range(CHUNKS):
                        this_h = next_h
                        if k + 1 < CHUNKS:
                            next_h = tl.load(shared_h + (k + 1) * BLOCK_K + chunk_at, cache_modifier=".cg")
                        total = tl.dot(kept[k], this_h, total, input_precision=PRECISION, out_dtype=REAL)
                else:
                    for k in range(0, WIDTH, BLOCK_K):
                        part = _weight_rows(weight + direction * G * H * H, units, k + tl.arange(0, BLOCK_K), H, G)
                        this_h = tl.load(shared_h + k + chunk_at, cache_modifier=".cg")
                        total = tl.dot(part, this_h, total, input_precision=PRECISION, out_dtype=REAL)
            h = _split(total, BLOCK_H, BLOCK_B, G)
        if HAS_BIAS:
            h = _sum(h, gate_bias, G)
        new, to_save = STEP(x, h, state)
        state = _choose(valid, new, state, S)
        if CUTS:
            state = _choose(cut, anew, state, S) if ANEW else _where(~cut, state, S)
        if EXCHANGES:
            tl.store(_exchange(exchange, s % 2, slab, slabs, WIDTH, BLOCK_B) + mine_at, as_operand(state[0], STORED, PRECISION), mask=mine)
            arrive(counter, TARGET)
        tl.store(output + out_row + row_at, tl.where(now[None, :], new[0], 0.0).to(STORED), mask=valid if PACKED else mine)
        if EVERY:
            tl.store(c_output + out_row + row_at, tl.where(now[None, :], new[1], 0.0).to(STORED), mask=valid if PACKED else mine)
        if SAVE:
            for i in tl.static_range(SAVES):
                value = to_save[i].to(saved.dtype.element_ty)
                tl.store(saved + saved_row + saved_at + i * H, value, mask=valid)

    _store_states(h_n + own, c_n + own, state_at, state, mine, S)


@triton.jit(do_not_specialize=_COUNTS)
def backward(
    grad_output,  # (T, B, D * H), or (N, D * H)
    grad_c,  # the same of the second state
    grad_h,  # stepwise: (D, B, H), float32 or float64: weight_hh^T @ dgates_h of the step after
    weight,  # (D, G * H, H)
    h_0,  # (D, B, H)
    c_0,
    h_anew,
    c_anew,
    output,  # (T, B, D * H)
    saved,  # (D, M, SAVES * H)
    dh_n,  # (D, B, H)
    dc_n,
    dh_0,  # (D, B, H), to be written; may be dh_n
    dc_0,
    dh_anew,  # (D, B, H), float32 or float64, to be added to
    dc_anew,
    dgates_x,  # (D, N, G * H)
    dgates_h,  # (D, N, G * H), the same tensor where the cell's two gradients are one
    step_dgates_h,  # stepwise: (D, B, G * H)
    parts,  # grid, streamed: (2, slabs, U, CHUNKS * BLOCK_K, BLOCK_B), float32 or float64; bfloat16 for bfloat16
    order,
    lengths,
    offsets,
    marks,
    counters,
    T,
    B,
    H,
    N,
    M,
    D,
    first_step,
    last_step,
    first_task,
    slabs,
    DERIVATIVE: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SAVES: tl.constexpr,
    TWO_GRADIENTS: tl.constexpr,
    HAS_GRAD_OUTPUT: tl.constexpr,
    HAS_GRAD_C: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PACKED: tl.constexpr,
    CUTS: tl.constexpr,
    ANEW: tl.constexpr,
    SCHEDULE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    REAL: tl.constexpr = _real(dgates_x.dtype.element_ty)
    STORED: tl.constexpr = dgates_x.dtype.element_ty
    EXCHANGES: tl.constexpr = SCHEDULE == "grid" or SCHEDULE == "streamed"
    WIDTH: tl.constexpr = CHUNKS * BLOCK_K
    programs = tl.cdiv(H, BLOCK_H)
    task = first_task + tl.program_id(0) // programs
    direction = (task % D).to(tl.int64)
    program = tl.program_id(0) % programs
    units = program * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_B)
    first_slot = (task // D) * BLOCK_B
    slots = first_slot + columns
    rows, length, steps = _sequences(order, lengths, slots, T, B, HAS_LENGTHS, SCHEDULE)
    counter = counters + task
    slab = task - first_task
    mine = (units < H)[:, None] & (slots < B)[None, :]
    gates_at = columns[None, :] * (G * H) + units[:, None]
    saved_at = columns[None, :] * (SAVES * H) + units[:, None]

    # Offsets inside a step take 32 bits (the caller sees to it), those of a step 64.
    state_at = rows[None, :] * H + units[:, None]
    row_at = (columns if PACKED else rows)[None, :] * (D * H) + units[:, None]
    own = direction * B * H
    d = _states(dh_n + own, dc_n + own, state_at, mine, S, REAL)
    kept = ()
    if SCHEDULE == "resident" or SCHEDULE == "grid":
        for k in tl.static_range(CHUNKS):
            columns_of_weight = _weight_columns(weight + direction * G * H * H, units, k * BLOCK_K + tl.arange(0, BLOCK_K), H, G)
            kept = kept + (as_operand(columns_of_weight, STORED, PRECISION),)
    later = tl.zeros((BLOCK_H, BLOCK_B), dtype=REAL)
    mine_at = units[:, None] * BLOCK_B + columns[None, :]
    chunk_at = tl.arange(0, BLOCK_K)[:, None] * BLOCK_B + columns[None, :]

    for s in range(first_step, tl.minimum(last_step, steps)):
        t = tl.where(direction == 0, steps - 1 - s, s)
        now = (t < length) & (slots < B)
        valid = (units < H)[:, None] & now[None, :]
        packed = _packed(offsets, t, B, HAS_LENGTHS) + first_slot
        gates_row = (direction * N + packed) * (G * H)
        saved_row = (direction * M + packed) * (SAVES * H)
        out_row = (_output_step(packed, t, B, PACKED) * D + direction) * H
        kept_gates = _gate_tiles(saved + saved_row + saved_at, H, valid, SAVES, True, REAL)
        begun, cut = now, now
        if CUTS:
            # Before this step, and behind it, where the loop was before.
            begun = begins_anew(marks, tl.where(direction == 0, t, t + 1), slots, length, B)
            cut = begins_anew(marks, tl.where(direction == 0, t + 1, t), slots, length, B)
        previous = _previous_states(
            output,
            saved,
            h_0 + own,
            c_0 + own,
            h_anew + own,
            c_anew + own,
            begun,
            offsets,
            t,
            first_slot,
            length,
            direction,
            valid,
            state_at,
            row_at,
            saved_at,
            B,
            H,
            M,
            D,
            S,
            SAVES,
            HAS_LENGTHS,
            PACKED,
            CUTS,
            ANEW,
            REAL,
        )
        if HAS_GRAD_OUTPUT:
            gradient = tl.load(grad_output + out_row + row_at, mask=valid, other=0.0).to(REAL)
        if HAS_GRAD_C:
            gradient_c = tl.load(grad_c + out_row + row_at, mask=valid, other=0.0).to(REAL)
        if EXCHANGES and s > first_step:
            wait(counter, programs * (s - first_step), TARGET)
            later = _sum_of_parts(parts, (s - 1) % 2, slab, slabs, mine_at, programs, WIDTH, BLOCK_H, BLOCK_B, BLOCK_U, REAL)
        if SCHEDULE == "stepwise":
            later = tl.load(grad_h + own + state_at, mask=mine, other=0.0)
        d = _add_to_first(d, later, S)
        if CUTS:
            if ANEW:
                _add_states(dh_anew + own, dc_anew + own, state_at, d, mine & cut[None, :], S)
                if SCHEDULE == "resident":
                    tl.debug_barrier()  # the next sum there may be another thread's
            d = _where(~cut[None, :], d, S)
        at_step = d
        if HAS_GRAD_OUTPUT:
            at_step = _add_to_first(d, gradient, S)
        if HAS_GRAD_C:
            at_step = (at_step[0], at_step[1] + gradient_c)
        for_x, for_h, before = DERIVATIVE(kept_gates, previous, at_step)
        d = _choose(valid, before, d, S)
        # A step outside its sequence and a unit beyond the last have none, whatever came of the zeros loaded for them: 0 * inf is not 0.
        for_h = _where(valid, for_h, G)
        if SCHEDULE != "stepwise":
            operand = as_operand(_join(for_h, G), STORED, PRECISION)
            if SCHEDULE == "resident":
                later = tl.dot(kept[0], operand, out_dtype=REAL, input_precision=PRECISION)
            else:
                my_part = _parts(parts, s % 2, slab, slabs, program, programs, WIDTH, BLOCK_B)
                if SCHEDULE == "grid":
                    for k in tl.static_range(CHUNKS):
                        part = tl.dot(kept[k], operand, out_dtype=REAL, input_precision=PRECISION)
                        tl.store(my_part + k * BLOCK_K * BLOCK_B + chunk_at, part.to(parts.dtype.element_ty))
                else:
                    for k in range(0, WIDTH, BLOCK_K):
                        part_weight = _weight_columns(weight + direction * G * H * H, units, k + tl.arange(0, BLOCK_K), H, G)
                        part = tl.dot(part_weight, operand, out_dtype=REAL, input_precision=PRECISION)
                        tl.store(my_part + k * BLOCK_B + chunk_at, part.to(parts.dtype.element_ty))
                arrive(counter, TARGET)
        for g in tl.static_range(G):
            tl.store(dgates_x + gates_row + gates_at + g * H, for_x[g].to(STORED), mask=valid)
            if TWO_GRADIENTS:
                tl.store(dgates_h + gates_row + gates_at + g * H, for_h[g].to(STORED), mask=valid)
            if SCHEDULE == "stepwise":
                step_at = rows[None, :] * (G * H) + units[:, None]
                tl.store(step_dgates_h + direction * B * (G * H) + g * H + step_at, for_h[g].to(STORED), mask=mine)

    if EXCHANGES and steps > first_step:
        wait(counter, programs * (steps - first_step), TARGET)
        later = _sum_of_parts(parts, (steps - 1) % 2, slab, slabs, mine_at, programs, WIDTH, BLOCK_H, BLOCK_B, BLOCK_U, REAL)
    if SCHEDULE != "stepwise":
        d = _add_to_first(d, later, S)
    _store_states(dh_0 + own, dc_0 + own, state_at, d, mine, S)


@triton.jit
def _sequences(order, lengths, slots, T, B, HAS_LENGTHS: tl.constexpr, SCHEDULE: tl.constexpr):
    """Each slot's row of the batch and its length, and how many steps this tile has: a launch of one step counts from T for all tiles."""
    in_batch = slots < B
    if HAS_LENGTHS:
        rows = tl.load(order + slots, mask=in_batch, other=0)
        length = tl.load(lengths + slots, mask=in_batch, other=0)
        steps = T if SCHEDULE == "stepwise" else tl.max(length, axis=0)
    else:
        rows = slots
        length = tl.where(in_batch, T, 0)
        steps = T
    return rows, length, steps


@triton.jit
def _packed(offsets, t, B, HAS_LENGTHS: tl.constexpr):
    """The first row of gates_x, saved and dgates that holds step t."""
    return tl.load(offsets + t).to(tl.int64) if HAS_LENGTHS else t.to(tl.int64) * B


@triton.jit
def _output_step(packed, t, B, PACKED: tl.constexpr):
    """The row of the output, padded (T * B) or packed, that a tile's first slot has at step t."""
    return packed if PACKED else t.to(tl.int64) * B


@triton.constexpr_function
def _real(stored):
    """What the states and sums inside a call are, for tensors of `stored`."""
    return tl.float64 if stored == tl.float64 else tl.float32


@triton.jit
def _states(h, c, at, mask, S: tl.constexpr, REAL: tl.constexpr):
    states = (tl.load(h + at, mask=mask, other=0.0).to(REAL),)
    if S == 2:
        states = states + (tl.load(c + at, mask=mask, other=0.0).to(REAL),)
    return states


@triton.jit
def _store_states(h, c, at, states, mask, S: tl.constexpr):
    tl.store(h + at, states[0].to(h.dtype.element_ty), mask=mask)
    if S == 2:
        tl.store(c + at, states[1].to(c.dtype.element_ty), mask=mask)


@triton.jit
def _add_states(h, c, at, states, mask, S: tl.constexpr):
    """By the one program that has these units, step after step, so that the order of a sum is always the same."""
    tl.store(h + at, tl.load(h + at, mask=mask, other=0.0) + states[0], mask=mask)
    if S == 2:
        tl.store(c + at, tl.load(c + at, mask=mask, other=0.0) + states[1], mask=mask)


@triton.jit
def _exchange(exchange, parity, slab, slabs, WIDTH: tl.constexpr, BLOCK_B: tl.constexpr):
    """The task's h after a step s with s % 2 == parity, (BLOCK_B, WIDTH).

    Two steps' worth of memory is enough: a program writes step s where step s - 2 was only after all have arrived at the barrier of step
    s - 1, and so have read what it overwrites. All read it from the L2 cache, past their multiprocessors' own L1 (".cg").
    """
    return exchange + (parity * slabs + slab).to(tl.int64) * (BLOCK_B * WIDTH)


@triton.jit
def _previous_states(
    output,
    saved,
    h_0,
    c_0,
    h_anew,
    c_anew,
    begun,
    offsets,
    t,
    first_slot,
    length,
    direction,
    valid,
    state_at,
    row_at,
    saved_at,
    B,
    H,
    M,
    D,
    S: tl.constexpr,
    SAVES: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PACKED: tl.constexpr,
    CUTS: tl.constexpr,
    ANEW: tl.constexpr,
    REAL: tl.constexpr,
):
    """The states before step t: h, and the others, which are the last that a cell saves; at a sequence's first step those it was given, and
    where it has `begun` anew those that it does so with."""
    before = tl.where(direction == 0, t - 1, t + 1)
    before_row = before + tl.zeros_like(length)
    started = valid & ((before_row >= 0) & (before_row < length))[None, :]
    at_first = valid & ~started
    if CUTS:
        started = started & ~begun[None, :]
    if ANEW:
        anew = _states(h_anew, c_anew, state_at, valid & begun[None, :], S, h_anew.dtype.element_ty)
    # Where no sequence of the tile has started, `before` is no step at all.
    packed = _packed(offsets, tl.maximum(before, 0), B, False)
    if HAS_LENGTHS:
        packed = tl.load(offsets + before, mask=(before >= 0) and (before < tl.max(length, axis=0)), other=0).to(tl.int64)
    packed += first_slot
    inside = output + (_output_step(packed, before, B, PACKED) * D + direction) * H
    h = tl.load(inside + row_at, mask=started, other=0.0)
    given_h = tl.load(h_0 + state_at, mask=at_first, other=0.0)
    states = (tl.where(started, h, given_h).to(REAL),)
    if S == 2:
        inside = saved + (direction * M + packed) * (SAVES * H) + (SAVES - 1) * H
        kept = tl.load(inside + saved_at, mask=started, other=0.0)
        given = tl.load(c_0 + state_at, mask=at_first, other=0.0)
        states = states + (tl.where(started, kept, given).to(REAL),)
    if ANEW:
        states = _choose(begun[None, :], anew, states, S)
    return states


@triton.constexpr_function
def _padded(G):
    """Gates in one operand: a power of two."""
    return 4 if G == 3 else G


@triton.jit
def _gate_rows(units, H, G: tl.constexpr):
    """Rows of weight_hh in the order of an operand, one gate after the other, and whether there is such a row."""
    P: tl.constexpr = _padded(G)
    gate = tl.arange(0, P)[:, None] + tl.zeros_like(units)[None, :]
    unit = units[None, :] + tl.zeros_like(gate)
    shape: tl.constexpr = P * units.shape[0]
    there = (unit < H) & (gate < G)
    return tl.reshape(gate * H + unit, (shape,)), tl.reshape(there, (shape,))


@triton.jit
def _weight_rows(weight, units, columns, H, G: tl.constexpr):
    """(gates of `units`, columns) of weight_hh."""
    rows, there = _gate_rows(units, H, G)
    return tl.load(weight + rows.to(tl.int64)[:, None] * H + columns[None, :], mask=there[:, None] & (columns < H)[None, :], other=0.0)


@triton.jit
def _weight_columns(weight, units, columns, H, G: tl.constexpr):
    """(columns, gates of `units`) of weight_hh^T."""
    rows, there = _gate_rows(units, H, G)
    return tl.load(weight + rows.to(tl.int64)[None, :] * H + columns[:, None], mask=there[None, :] & (columns < H)[:, None], other=0.0)


@triton.jit
def _split(total, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, G: tl.constexpr):
    """The product's rows, one tile a gate."""
    if G == 1:
        gates = (total,)
    else:
        low, high = tl.split(tl.permute(tl.reshape(total, (2, 2, BLOCK_H, BLOCK_B)), (2, 3, 0, 1)))
        first, third = tl.split(low)
        second, fourth = tl.split(high)
        gates = (first, second, third) if G == 3 else (first, second, third, fourth)
    return gates


@triton.jit
def _join(gates, G: tl.constexpr):
    """The inverse of `_split`."""
    if G == 1:
        rows = gates[0]
    else:
        fourth = tl.zeros_like(gates[0]) if G == 3 else gates[G - 1]
        both = tl.join(tl.join(gates[0], gates[2]), tl.join(gates[1], fourth))
        rows = tl.reshape(tl.permute(both, (2, 3, 0, 1)), (4 * gates[0].shape[0], gates[0].shape[1]))
    return rows


@triton.jit
def _gate_tiles(at, H, mask, COUNT: tl.constexpr, THERE: tl.constexpr, REAL: tl.constexpr):
    """COUNT tiles, H elements apart."""
    tiles = ()
    if THERE:
        for g in tl.static_range(COUNT):
            tiles = tiles + (tl.load(at + g * H, mask=mask, other=0.0).to(REAL),)
    return tiles


@triton.jit
def _sum(a, b, COUNT: tl.constexpr):
    both = ()
    for i in tl.static_range(COUNT):
        both = both + (a[i] + b[i],)
    return both


@triton.jit
def _add_to_first(states, more, S: tl.constexpr):
    result = (states[0] + more,)
    for i in tl.static_range(1, S):
        result = result + (states[i],)
    return result


@triton.jit
def _choose(where, a, b, S: tl.constexpr):
    chosen = ()
    for i in tl.static_range(S):
        chosen = chosen + (tl.where(where, a[i], b[i]),)
    return chosen


@triton.jit
def _where(valid, gates, G: tl.constexpr):
    result = ()
    for g in tl.static_range(G):
        result = result + (tl.where(valid, gates[g], 0.0),)
    return result


@triton.jit
def _parts(parts, parity, slab, slabs, program, programs, WIDTH: tl.constexpr, BLOCK_B: tl.constexpr):
    """`program`'s part of dh of all units, (WIDTH, BLOCK_B), in a step s with s % 2 == parity; `_exchange` says why two are enough."""
    return parts + ((parity * slabs + slab) * programs + program).to(tl.int64) * (WIDTH * BLOCK_B)


@triton.jit
def _sum_of_parts(
    parts,
    parity,
    slab,
    slabs,
    mine_at,
    programs,
    WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    REAL: tl.constexpr,
):
    """dh of this program's units: what every program of the task computed for them, summed in the order of the programs."""
    total = tl.zeros((BLOCK_H, BLOCK_B), dtype=REAL)
    for first in range(0, programs, BLOCK_U):
        for program in tl.static_range(BLOCK_U):  # independent loads, on their way together
            at = _parts(parts, parity, slab, slabs, first + program, programs, WIDTH, BLOCK_B) + mine_at
            there = tl.full((BLOCK_H, BLOCK_B), first + program, tl.int32) < programs
            total += tl.load(at, mask=there, other=0.0, cache_modifier=".cg").to(REAL)
    return total
