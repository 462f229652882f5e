"""One layer on the GPU, forward and backward: the input projection, the time loop's launches, and the weights' gradients.

T time steps, B batch, I input_size, H hidden_size, D directions, G gates, S states; N rows of valid steps (see `rows`). Everything runs on
the current stream, both directions in one launch, and nothing waits for the GPU. Layers with a projection are programs
(`sstkern.program.projected`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, cached_property

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from sstkern.cells import CELLS, Cell
from sstkern.engines.triton import device, launch, recurrence, rows
from sstkern.engines.triton.cells import kernels
from sstkern.engines.triton.launch import Launch
from sstkern.lengths import ALL_ROWS, all_rows, alone, check_packed, longest
from sstkern.weights import Weights, by_direction

runs: Counter[str] = Counter()
"""What ran in this process: calls of "forward" and "backward", and of each schedule."""


def forward(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    saved_rows: int | None,
    every: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`sstkern::layer`. Its `saved` is what `saved_shapes` says."""
    with on(x.device):
        call = _Call(cell, x, weights, hx, lengths, has_bias, bidirectional)
        if every:
            _check_every(call)
        runs["forward"] += 1
        output = call.output()
        c_output = call.output() if every else None
        saved = None if saved_rows is None else call.saved(saved_rows)
        plan = call.plan(backward=False) if call.T and call.B else None
        if plan is None:
            hx_n = [state.clone() for state in call.hx]
        elif plan.schedule == "stepwise":
            hx_n = _forward_stepwise(call, plan, output, c_output, saved)
        else:
            hx_n = [torch.empty_like(state) for state in call.hx]
            _launch_forward(call, plan, call.gates_x(), None, call.hx, hx_n, output, c_output, saved, 0, call.T)
        return output, hx_n if c_output is None else [*hx_n, c_output], [] if saved is None else [saved]


def backward(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    output: Tensor,
    saved: Sequence[Tensor],
    grad_output: Tensor | None,
    grad_hx: Sequence[Tensor],
    needs: Sequence[bool],
    groups: int | None = None,
) -> list[Tensor]:
    """`sstkern::layer_backward`."""
    check_backward(weights, hx, saved, needs)
    with on(x.device):
        call = _Call(cell, x, weights, hx, lengths, has_bias, bidirectional)
        if groups is not None and (groups < 1 or call.B % groups):
            raise ValueError(f"groups: {groups} do not share {call.B} sequences equally")
        runs["backward"] += 1
        loop = _Backward(call, output, saved, grad_output, grad_hx, groups)
        dhx = loop.run()
        return [gradient for gradient, need in zip(loop.gradients(dhx, needs), needs, strict=True) if need]


def saved_like(cell: str, x: Tensor, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool, rows: int) -> list[Tensor]:
    """What the step saves, empty: (D, rows, saves * H), the first rows of it filled."""
    directions = by_direction(CELLS[cell], weights, has_bias, bidirectional)
    hidden_size = directions[0].weight_hh.size(1)
    return [x.new_empty(len(directions), rows, kernels(cell).saves * hidden_size)]


def part_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the parts of dh are exchanged in, in a layer of `dtype`.

    bfloat16 for bfloat16, which takes 8 to 27% off a training step of an LSTM of 512 or 1024 units (H200) and leaves the gradients' error
    at 3.8e-3, cuDNN's being 9e-3. float16 would lose small gradients.
    """
    return {torch.float64: torch.float64, torch.bfloat16: torch.bfloat16}.get(dtype, torch.float32)


class _Call:
    """The sizes of a call, and its arguments as the kernels take them."""

    def __init__(self, cell, x, weights, hx, lengths, has_bias, bidirectional):
        self.cell, self.kernels = CELLS[cell], kernels(cell)
        self.x, self.lengths = x, None if lengths is None else alone(lengths)
        states, given = len(self.cell.states), [state.contiguous() for state in hx]
        # What sequences begin with, and what they begin anew with, where that is not zeros.
        self.hx, self.anew = given[:states], given[states:]
        self.weights = by_direction(self.cell, weights, has_bias, bidirectional)
        self.packed = x.dim() == 2
        if self.packed:
            check_packed(lengths, x.size(0))
        self.T, self.B = (longest(self.lengths), len(self.lengths)) if self.packed else x.shape[:2]
        self.I = x.size(-1)
        self.D, self.G, self.S = len(self.weights), len(self.cell.gates), states
        self.H = self.weights[0].weight_hh.size(0) // self.G
        self.rows, self.marks = rows.of_operator(lengths, self.T, x.device)
        check(self.cell, x, self.weights, hx, self.B, self.marks is not None)
        if self.B * self.D * self.H * max(self.G, self.kernels.saves) >= 2**31:
            raise RuntimeError(f"sstkern::layer: one time step of {self.B} sequences x {self.H} hidden units has more than 2^31 elements")
        self.device = device.of(x.device)
        self.real = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self.marks is not None and self.T:
            self.hx = [torch.where(self.starts_anew, anew, state) for anew, state in zip(self.anew or [0] * states, self.hx, strict=True)]
        self.N = self.T * self.B if self.rows is None else self.rows.count
        self.precision = self.device.precision(x.dtype)
        self.weight_hh = _stacked([w.weight_hh for w in self.weights])
        self.bias_hh = _stacked([w.bias_hh for w in self.weights]) if has_bias else None
        self.layer = launch.Layer(x.dtype, self.precision, self.G, self.B, self.H, self.D)

    def plan(self, backward: bool) -> Launch:
        return launch.choose(self.device.card, self.layer, backward, launch.forced())

    def tasks(self, plan: Launch) -> int:
        return self.D * -(-self.B // plan.block_b)

    def slabs(self, plan: Launch) -> int:
        """Tasks in one launch: as many as are resident at once where programs wait for each other, all where they do not."""
        if not plan.exchanges:
            return self.tasks(plan)
        return min(self.tasks(plan), max(1, self.device.card.multiprocessors // plan.programs(self.H)))

    @cached_property
    def starts_anew(self) -> Tensor:
        """bool (D, B, 1): whether a sequence begins anew with what a direction begins with; the one from the last step to the first never
        does."""
        start = rows.starting(self.marks, self.rows)
        start = start if self.rows is None else start[self.rows.slot]
        return torch.stack([start, torch.zeros_like(start)][: self.D])[..., None]

    def begun(self, d: int) -> Tensor:
        """bool (N, 1): whether direction d has begun anew with a row's step, which is not its first one."""
        if self.rows is None:
            later = self.marks[1:]
            first = torch.zeros_like(self.marks[:1])
            return (torch.cat([later, first] if d else [first, later]) != 0).reshape(self.N, 1)
        step, started = self.rows.after if d else self.rows.before
        mark = self.marks[step if d else self.rows.step, self.rows.slot[self.rows.sequence]]
        return started & (mark != 0)[:, None]

    def weight(self, plan: Launch) -> Tensor:
        """weight_hh for the kernels, which round what they keep to TF32, and leave what they stream as it is."""
        return _as_tf32(self.weight_hh) if plan.schedule == "streamed" and self.precision == "tf32" else self.weight_hh

    def exchange(self, plan: Launch) -> Tensor:
        """Memory to exchange h, two steps of it. Beyond the last unit, where no program stores, it is finite: it meets weights of 0."""
        width = plan.block_k * plan.chunks
        new = self.x.new_empty if width == self.H else self.x.new_zeros
        return new(2, self.slabs(plan), plan.block_b, width)

    def output(self) -> Tensor:
        """(T, B, D * H), zeros where the kernels may skip steps that no sequence has, or (N, D * H)."""
        new = self.x.new_empty if self.rows is None or self.packed else self.x.new_zeros
        return new(*self.x.shape[:-1], self.D * self.H)

    def saved(self, rows: int) -> Tensor:
        """(D, rows, saves * H); zeros that stay unused make the operator's results the same in every run."""
        rows = all_rows(self.x) if rows == ALL_ROWS else rows
        if rows < self.N:
            raise ValueError(f"saved_rows: expected at least {self.N}, the number of valid time steps, got {rows}")
        whole = self.rows is None or (self.rows.present is None and rows == self.N)
        return (self.x.new_empty if whole else self.x.new_zeros)(self.D, rows, self.kernels.saves * self.H)

    def x_rows(self) -> Tensor:
        """(N, I)"""
        if self.rows is None or self.packed:
            return self.x.reshape(self.N, self.I)
        return rows.gather(self.x, self.rows, (self.rows.step, self.rows.sequence))

    def gates_x(self) -> Tensor:
        """(D, N, G * H)"""
        x, gates = self.x_rows(), self.x.new_empty(self.D, self.N, self.G * self.H)
        for of_direction, w in zip(gates, self.weights, strict=True):
            if w.bias_ih is None:
                torch.mm(x, w.weight_ih.T, out=of_direction)
            else:
                torch.addmm(w.bias_ih, x, w.weight_ih.T, out=of_direction)
        return gates

    def previous_h(self, output: Tensor, d: int) -> Tensor:
        """(N, H): the h that went into each row's recurrent product."""
        inside, first = output[..., d * self.H : (d + 1) * self.H], self.hx[0][d]
        if self.rows is None:
            shifted = torch.cat([first[None], inside[:-1]] if d == 0 else [inside[1:], first[None]])[: self.T]  # where there is no step
            if self.marks is not None:
                shifted = torch.where(self.begun(d).view(self.T, self.B, 1), self.anew[0][d] if self.anew else 0, shifted)
            return shifted.reshape(self.N, self.H)
        step, started = self.rows.after if d else self.rows.before
        before = inside[self.rows.at(step)] if self.packed else inside[step, self.rows.sequence]
        previous = torch.where(started, before, first[self.rows.sequence])
        if self.marks is not None:
            previous = torch.where(self.begun(d), self.anew[0][d][self.rows.sequence] if self.anew else 0, previous)
        return previous if self.rows.present is None else torch.where(self.rows.present, previous, 0)

    def like_x(self, values: Tensor) -> Tensor:
        """(N, features) as it is where x is packed, else padded."""
        return values if self.packed else self.padded(values)

    def padded(self, values: Tensor) -> Tensor:
        """(N, features) to (T, B, features), zero where no step is valid."""
        if self.rows is None:
            return values.view(self.T, self.B, values.size(1))
        if self.N == 0:
            return values.new_zeros(self.T, self.B, values.size(1))
        return torch.where(self.rows.valid[..., None], values[self.rows.place], 0)


def check_backward(weights: Sequence[Tensor], hx: Sequence[Tensor], saved: Sequence[Tensor], needs: Sequence[bool]) -> None:
    """Raises RuntimeError where nothing was saved, or for another number of flags than of gradients."""
    if not saved:
        raise RuntimeError("sstkern::layer_backward: nothing was saved; call sstkern::layer with saved_rows")
    if len(needs) != 1 + len(weights) + len(hx):
        raise RuntimeError(f"sstkern::layer_backward: expected {1 + len(weights) + len(hx)} flags in needs, got {len(needs)}")


def check(cell: Cell, x: Tensor, weights: Sequence[Weights], hx: Sequence[Tensor], batch: int, cut: bool) -> None:
    """The kernels check nothing: every size before any memory is touched. Raises RuntimeError for one that does not fit. cut: whether
    sequences begin anew at some steps."""
    G, (first, *_) = len(cell.gates), weights
    hidden_size = first.weight_hh.size(0) // G
    width = hidden_size if first.weight_hr is None else first.output_size
    sizes = {"input_size": x.size(-1), "hidden_size": hidden_size, "output_size": width}
    for w in weights:
        shapes = cell.shapes(w.bias_ih is not None, w.weight_hr is not None, **sizes)
        for name, shape in shapes.items():
            if hasattr(w, name):  # those that every cell has
                _check_tensor(x, name, getattr(w, name), shape)
    count = len(cell.states)
    if len(hx) != count and not (cut and len(hx) == 2 * count):
        raise RuntimeError(f"sstkern::layer: expected {count} states in hx{', or as many again' * cut}, got {len(hx)}")
    widths = cell.state_sizes(hidden_size, width)
    for name, state, size in zip(cell.states * 2, hx, widths * 2, strict=False):
        _check_tensor(x, f"{name}_0", state, (len(weights), batch, size))


def _check_every(call: _Call) -> None:
    if call.S != 2:
        raise NotImplementedError("sstkern::layer: the Triton engine has all states of a cell with h and another one")


def _check_tensor(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"sstkern::layer: expected {name} of shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != x.dtype or tensor.device != x.device:
        raise RuntimeError(f"sstkern::layer: expected {name} of {x.dtype} on {x.device} like x, got {tensor.dtype} on {tensor.device}")


def _forward_stepwise(call: _Call, plan: Launch, output: Tensor, c_output: Tensor | None, saved: Tensor | None) -> list[Tensor]:
    """Returns the last states."""
    states = [state.to(call.real, copy=True) for state in call.hx]
    gates_x, weight_hh = call.gates_x(), call.weight_hh.transpose(1, 2)
    for s in range(call.T):
        gates_h = product(states[0].to(call.x.dtype), weight_hh, call.real)
        _launch_forward(call, plan, gates_x, gates_h, states, states, output, c_output, saved, s, s + 1)
    return [state.to(call.x.dtype) for state in states]


def _launch_forward(
    call: _Call,
    plan: Launch,
    gates_x: Tensor,
    gates_h: Tensor | None,
    hx: Sequence[Tensor],
    hx_n: Sequence[Tensor],
    output: Tensor,
    c_output: Tensor | None,
    saved: Tensor | None,
    first_step: int,
    last_step: int,
) -> None:
    anew = call.anew or hx  # any tensors will do where there are none
    arguments = {
        "gates_x": gates_x,
        "gates_h": gates_x if gates_h is None else gates_h,
        "weight": call.weight(plan),
        "bias": call.weight_hh if call.bias_hh is None else call.bias_hh,
        "h_0": hx[0],
        "c_0": hx[-1],
        "h_anew": anew[0],
        "c_anew": anew[-1],
        "h_n": hx_n[0],
        "c_n": hx_n[-1],
        "output": output,
        "c_output": output if c_output is None else c_output,
        "saved": output if saved is None else saved,
        "exchange": call.exchange(plan) if plan.exchanges else output,
        **_of_every_kernel(call, plan, first_step, last_step),
        "M": call.N if saved is None else saved.size(1),
        "STEP": call.kernels.step,
        "HAS_BIAS": call.bias_hh is not None,
        "EVERY": c_output is not None,
        "SAVE": saved is not None,
    }
    _launch(call, plan, recurrence.forward, arguments)


class _Backward:
    """The time loop from the last step to the first, and what comes of it."""

    def __init__(
        self,
        call: _Call,
        output: Tensor,
        saved: Sequence[Tensor],
        grad_output: Tensor | None,
        grad_hx: Sequence[Tensor],
        groups: int | None,
    ):
        self.call, self.output, self.groups = call, output.contiguous(), groups
        self.grad_output = None if grad_output is None else grad_output.contiguous()
        grad_hx, (grad_c,) = grad_hx[: call.S], grad_hx[call.S :] or (None,)
        self.grad_c = None if grad_c is None else grad_c.contiguous()
        self.check(saved, grad_hx)
        self.saved = saved[0].contiguous()
        new = call.x.new_empty if call.rows is None or call.rows.present is None else call.x.new_zeros
        self.dgates_x = new(call.D, call.N, call.G * call.H)
        self.dgates_h = self.dgates_x if call.kernels.same_gate_gradients else new(call.D, call.N, call.G * call.H)
        self.danew = [torch.zeros_like(state, dtype=call.real) for state in call.anew]
        self.grad_hx = [gradient.contiguous() for gradient in grad_hx]

    def check(self, saved: Sequence[Tensor], grad_hx: Sequence[Tensor]) -> None:
        call = self.call
        rows = max(call.N, saved[0].size(1))
        if len(saved) != 1:
            raise RuntimeError(f"sstkern::layer_backward: expected 1 tensor in saved, got {len(saved)}")
        _check_tensor(call.x, "saved", saved[0], (call.D, rows, call.kernels.saves * call.H))
        if self.grad_c is not None:
            _check_every(call)
        for name, tensor in {"output": self.output, "grad_output": self.grad_output, "the gradient of all c": self.grad_c}.items():
            if tensor is not None:
                _check_tensor(call.x, name, tensor, (*call.x.shape[:-1], call.D * call.H))
        for name, gradient, state in zip(call.cell.states, grad_hx, call.hx, strict=True):
            _check_tensor(call.x, f"the gradient of {name}_n", gradient, tuple(state.shape))

    def run(self) -> list[Tensor]:
        """Returns the gradients of the first states, and of those that sequences begin anew with if they are given."""
        call, dhx, danew = self.call, self.loop(), self.danew
        if call.marks is not None and call.T:
            start = call.starts_anew
            danew = [anew + torch.where(start, gradient, 0) for anew, gradient in zip(danew, dhx, strict=False)]
            dhx = [torch.where(start, 0, gradient) for gradient in dhx]
        return [*dhx, *(gradient.to(call.x.dtype) for gradient in danew)]

    def loop(self) -> list[Tensor]:
        """Returns what the loop over time steps leaves of the states' gradients."""
        plan = self.call.plan(backward=True) if self.call.T and self.call.B else None
        if plan is None:
            return [gradient.clone() for gradient in self.grad_hx]
        if plan.schedule == "stepwise":
            return self.run_stepwise(plan)
        dhx = [torch.empty_like(gradient) for gradient in self.grad_hx]
        self.launch(plan, None, None, self.grad_hx, dhx, 0, self.call.T)
        return dhx

    def run_stepwise(self, plan: Launch) -> list[Tensor]:
        call = self.call
        dstates = [gradient.to(call.real, copy=True) for gradient in self.grad_hx]
        grad_h = torch.zeros_like(dstates[0])  # of h after a step, from the step that follows
        step_dgates_h = call.x.new_empty(call.D, call.B, call.G * call.H)
        for s in range(call.T):
            self.launch(plan, grad_h, step_dgates_h, dstates, dstates, s, s + 1)
            grad_h = product(step_dgates_h, call.weight_hh, call.real)
        return [state.to(call.x.dtype) for state in (dstates[0] + grad_h, *dstates[1:])]

    def launch(
        self,
        plan: Launch,
        grad_h: Tensor | None,
        step_dgates_h: Tensor | None,
        grad_hx: Sequence[Tensor],
        dhx: Sequence[Tensor],
        first_step: int,
        last_step: int,
    ) -> None:
        call = self.call
        has_grad_output = self.grad_output is not None
        anew, danew = call.anew or call.hx, self.danew or dhx  # any tensors will do where there are none
        arguments = {
            "grad_output": self.grad_output if has_grad_output else self.output,
            "grad_c": self.output if self.grad_c is None else self.grad_c,
            "grad_h": self.output if grad_h is None else grad_h,
            "weight": call.weight(plan),
            "h_0": call.hx[0],
            "c_0": call.hx[-1],
            "h_anew": anew[0],
            "c_anew": anew[-1],
            "output": self.output,
            "saved": self.saved,
            "dh_n": grad_hx[0],
            "dc_n": grad_hx[-1],
            "dh_0": dhx[0],
            "dc_0": dhx[-1],
            "dh_anew": danew[0],
            "dc_anew": danew[-1],
            "dgates_x": self.dgates_x,
            "dgates_h": self.dgates_h,
            "step_dgates_h": self.dgates_h if step_dgates_h is None else step_dgates_h,
            "parts": self.parts(plan) if plan.exchanges else self.output,
            **_of_every_kernel(call, plan, first_step, last_step),
            "M": self.saved.size(1),
            "DERIVATIVE": call.kernels.derivative,
            "TWO_GRADIENTS": not call.kernels.same_gate_gradients,
            "HAS_GRAD_OUTPUT": has_grad_output,
            "HAS_GRAD_C": self.grad_c is not None,
            "BLOCK_U": plan.block_u,
        }
        _launch(call, plan, recurrence.backward, arguments)

    def parts(self, plan: Launch) -> Tensor:
        """Memory for the parts of dh, two steps of them."""
        call = self.call
        shape = 2, call.slabs(plan), plan.programs(call.H), plan.block_k * plan.chunks, plan.block_b
        return call.x.new_empty(shape, dtype=part_dtype(call.x.dtype))

    def gradients(self, dhx: list[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of x, every weight and every state, which are dhx; None for one not needed."""
        needed = iter(needs)
        gradients = [self.of_x() if next(needed) else None]
        x_rows = self.call.x_rows()
        for d, w in enumerate(self.call.weights):
            makers = [
                lambda d=d: self.summed(self.dgates_x[d], x_rows),
                lambda d=d: self.summed(self.dgates_h[d], self.call.previous_h(self.output, d)),
            ]
            if w.bias_ih is not None:
                makers += self.of_biases(d)
            gradients += [make() if next(needed) else None for make in makers]
        return gradients + dhx

    def summed(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum over rows (N, .) of their outer products; over the rows of each group, (groups, ., .)."""
        return left.T @ right if self.groups is None else torch.bmm(self.grouped(left).transpose(1, 2), self.grouped(right))

    def grouped(self, values: Tensor) -> Tensor:
        """(T, B, features) or (N, features) to (groups, T * B / groups, features)."""
        call, groups = self.call, self.groups
        padded = values if values.dim() == 3 else call.padded(values)
        return padded.unflatten(1, (groups, call.B // groups)).transpose(0, 1).flatten(1, 2)

    def of_biases(self, d: int) -> list[Callable[[], Tensor]]:
        of_x = cache(lambda: self.bias_sum(self.dgates_x[d]))
        return [of_x, lambda: of_x().clone() if self.call.kernels.same_gate_gradients else self.bias_sum(self.dgates_h[d])]

    def bias_sum(self, dgates: Tensor) -> Tensor:
        return dgates.sum(0) if self.groups is None else self.grouped(dgates).sum(1)

    def of_x(self) -> Tensor:
        total = self.dgates_x[0] @ self.call.weights[0].weight_ih
        if self.call.D == 2:
            total = torch.addmm(total, self.dgates_x[1], self.call.weights[1].weight_ih)
        return self.call.like_x(total)


def _of_every_kernel(call: _Call, plan: Launch, first_step: int, last_step: int) -> dict:
    by_length = call.weight_hh if call.rows is None else None  # any tensor will do where there are no lengths
    return {
        "order": call.rows.order if by_length is None else by_length,
        "lengths": call.rows.lengths if by_length is None else by_length,
        "offsets": call.rows.offsets if by_length is None else by_length,
        "marks": call.weight_hh if call.marks is None else call.marks,
        "T": call.T,
        "B": call.B,
        "H": call.H,
        "N": call.N,
        "D": call.D,
        "first_step": first_step,
        "last_step": last_step,
        "slabs": call.slabs(plan),
        "G": call.G,
        "S": call.S,
        "SAVES": call.kernels.saves,
        "HAS_LENGTHS": call.rows is not None,
        "PACKED": call.packed,
        "CUTS": call.marks is not None,
        "ANEW": bool(call.anew),
        "SCHEDULE": plan.schedule,
        "BLOCK_H": plan.block_h,
        "BLOCK_B": plan.block_b,
        "BLOCK_K": plan.block_k,
        "CHUNKS": plan.chunks,
        "PRECISION": call.precision,
        "TARGET": call.device.target,
    }


def _launch(call: _Call, plan: Launch, kernel: JITFunction, arguments: dict) -> None:
    tasks, at_once, programs = call.tasks(plan), call.slabs(plan), plan.programs(call.H)
    counters = torch.zeros(tasks, dtype=torch.int32, device=call.x.device) if plan.exchanges else call.weight_hh
    runs[plan.schedule] += 1
    for first in range(0, tasks, at_once):
        grid = (programs * min(at_once, tasks - first),)
        options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "launch_cooperative_grid": plan.exchanges}
        call.device.run(kernel, grid, arguments | {"counters": counters, "first_task": first}, options)


def _stacked(tensors: list[Tensor]) -> Tensor:
    """(D, ...), contiguous; without a copy where there is one direction."""
    return tensors[0].contiguous()[None] if len(tensors) == 1 else torch.stack(tensors)


def _as_tf32(weight: Tensor) -> Tensor:
    """Rounded to what a tensor core takes of a float32, as `math.as_operand` does."""
    rounded = (weight.view(torch.int32) + 0x1000).bitwise_and_(-0x2000).view(torch.float32)
    return torch.where(weight.isnan(), weight, rounded)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """torch.bmm with the result, and the sum, in `dtype`."""
    if a.dtype == dtype:
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=dtype) if a.is_cuda else torch.bmm(a.to(dtype), b.to(dtype))


def on(place: torch.device):
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(place) if place.type == "cuda" else nullcontext()
