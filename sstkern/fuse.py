"""Any cell as a layer over sequences: `fuse(cell)`, with everything that LSTM has.

T time steps, B batch, N the valid steps of all sequences. A state is a tensor (B, ...), or nested tuples or lists of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sstkern import engines, first_states, misfits, private, stepping
from sstkern.first_states import Initial
from sstkern.forked import one_thread
from sstkern.lengths import Batch, Lengths, Resets, beginnings, to_batches
from sstkern.misfits import StepFailed
from sstkern.operators import autocasting
from sstkern.program import layer
from sstkern.program.capture import Failed, NoDefault, Unfused, Unpacked
from sstkern.stepping import Result
from sstkern.structure import Returns, Structure, described, flatten, mapped


class NotFused(RuntimeError):
    """Raised with strict=True, with the reason why a cell cannot be run as a program."""


def fuse(
    cell: nn.Module,
    backward_cell: nn.Module | None = None,
    *,
    returns: Returns = "auto",
    initial_state: Initial | None = None,
    batch_first: bool = False,
    reverse: bool = False,
    recompute: bool = False,
    strict: bool = False,
) -> FusedLayer:
    """A layer that runs a cell over sequences. The cell is one time step: `forward(input, state)`, in plain PyTorch.

    The layer has the cell's parameters, and its state_dict; with two cells under "forward_cell." and "backward_cell.".

    Args:
        cell: any module; it is not changed. Its forward is given an input (B, ...) and a state, and returns the new state, whose first
            tensor is then the output, or a pair of an output and the new state. A state is a tensor (B, ...) or nested tuples or lists of
            them.
        backward_cell: another cell, for the direction from the last step to the first; the outputs stand side by side in the last
            dimension, and states are a pair.
        returns: "state" or "output_and_state"; "auto" compares with the structure of the state.
        initial_state: what a call without hx begins with: widths of zeros, an int or a structure of ints, or a function
            (batch_size, like) -> state. By default that is the cell's own default, where its state has one, else what its
            `get_initial_state` returns, else zeros of its `hidden_size`, two for a torch.nn.LSTMCell.
        batch_first: whether padded inputs and outputs are (B, T, ...).
        reverse: whether the one direction goes from the last step to the first. The output is in the input's order of time.
        recompute: less memory and more time in training; nothing for a cell that is stepped in Python.
        strict: whether a cell that cannot be run as a program raises `NotFused`; by default it is stepped in Python, with a warning.

    Raises TypeError or ValueError for wrong arguments.
    """
    for name, given in (("cell", cell), ("backward_cell", backward_cell)):
        if given is not None or name == "cell":
            _check_cell(given, name)
    if returns not in get_args(Returns):
        raise ValueError(f"returns: expected one of {', '.join(map(repr, get_args(Returns)))}, got {returns!r}")
    first_states.check_initial(initial_state)
    flags = {"batch_first": batch_first, "reverse": reverse, "recompute": recompute, "strict": strict}
    for name, flag in flags.items():
        if type(flag) is not bool:
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    if backward_cell is None:
        return Fused(cell, Direction(returns, initial_state, reverse, recompute, strict), batch_first)
    if reverse:
        raise ValueError("reverse: with a backward_cell both directions run; there is none to reverse")
    directions = [Direction(returns, initial_state, backward, recompute, strict) for backward in (False, True)]
    return FusedBothWays(cell, backward_cell, directions, batch_first)


def _check_cell(cell: object, name: str) -> None:
    if not isinstance(cell, nn.Module):
        what = f"the class {cell.__name__}; make an instance of it" if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"{name}: expected a torch.nn.Module that does one time step, got {what}")
    if isinstance(cell, nn.RNNBase | FusedLayer):
        raise TypeError(
            f"{name}: {type(cell).__name__} is a layer, which runs over sequences already; give a cell, which does one time step"
        )


class Direction:
    """One direction of a layer: how its cell is run over sequences, and whether as a program."""

    def __init__(self, returns: Returns, initial_state: Initial | None, reverse: bool, recompute: bool, strict: bool):
        self.returns, self.initial_state, self.reverse = returns, initial_state, reverse
        self.recompute, self.strict = recompute, strict
        self.programs = layer.Programs()
        self.fused = False
        self.reason: str | None = None
        self.warned = False

    def run(
        self, cell: nn.Module, inputs: Structure, batch: Batch, hx: Structure | None, every: bool, reset_to: Structure | None
    ) -> Result:
        """The output and all states in the form of the batch's x, hx_n in that of the caller's hx.

        Raises TypeError or ValueError for an hx or reset_to that does not fit, or a cell that returns what is no state.
        """
        engines.check_program(fused=True)
        given = self._given(cell, inputs, batch, hx)
        anew = self._anew(cell, inputs, batch, given, hx is not None, reset_to) if beginnings(batch.lengths) is not None else None
        result = self._as_program(cell, inputs, batch, given, every, hx is not None, anew)
        if result is None:
            engines.check_program(fused=False)
            step = partial(stepping.layer, anew=anew, padded=not batch.packed, returns=self.returns, reverse=self.reverse, every=every)
            try:
                result = step(cell, inputs, given, batch.lengths)
            except StepFailed as failed:
                raise misfits.of_step(cell, failed, hx is not None) from failed.__cause__
            except (TypeError, ValueError) as error:
                if hx is not None or self.initial_state is not None:
                    raise
                raise type(error)(
                    f"{error} (no hx was given: the state was {described(given)}, as the cell says; see initial_state)"
                ) from error
            if not torch.compiler.is_dynamo_compiling():
                self._warn(cell)  # not of a call that fails, which says itself what is wrong
        if batch.inverse is None and batch.batched:
            return result
        return result._replace(hx_n=mapped(result.hx_n, lambda state: _to_caller(state, batch)))

    def _given(self, cell: nn.Module, inputs: Structure, batch: Batch, hx: Structure | None) -> Structure | None:
        """The first states, (B, ...), in the order of the batch; None where only the cell knows them."""
        like = first_states.like(flatten(inputs), cell)
        if hx is None:
            state = first_states.first_state(cell, self.initial_state, batch.size, like)
        else:
            state = first_states.checked(hx, "hx", batch.size, like, batch.batched)
        order = batch.order
        return state if state is None or order is None else mapped(state, lambda leaf: leaf.index_select(0, order))

    def _anew(
        self, cell: nn.Module, inputs: Structure, batch: Batch, given: Structure | None, told: bool, reset_to: Structure | None
    ) -> Structure | None:
        """What sequences begin anew with, (B, ...), in the order of the batch; None for zeros, or where only the cell knows what they begin
        with in the first place: the same.

        given: what they begin with; told: whether the caller said so.
        """
        like = first_states.like(flatten(inputs), cell)
        if reset_to is not None:
            anew = first_states.checked(reset_to, "reset_to", batch.size, like, batch.batched, shared=True)
            if given is not None:
                first_states.check_same(anew, given, "reset_to", batch.batched)
            anew, order = mapped(anew, lambda leaf: leaf.expand(batch.size, *leaf.shape[1:])), batch.order
            return anew if order is None else mapped(anew, lambda leaf: leaf.index_select(0, order))
        if given is None or first_states.are_zeros(cell, self.initial_state):
            return None
        if not told:
            return given
        anew = first_states.first_state(cell, self.initial_state, batch.size, like)
        if anew is None:
            raise ValueError(
                f"reset_to: what {type(cell).__name__} begins with is the default of its state, which a call with hx leaves aside; give "
                "reset_to, or initial_state to fuse"
            )
        return anew

    def _check_hx(self, cell: nn.Module, inputs: Structure, batch: Batch, state: Structure) -> None:
        """Raises TypeError or ValueError for a caller's state, (B, ...), that is not the cell's."""
        if (widths := first_states.known_widths(cell, self.initial_state)) is not None:
            first_states.check_widths(state, widths, batch.size)
        leaves, like = flatten(state), first_states.like(flatten(inputs), cell)
        if any(leaf.dim() > 2 for leaf in leaves) and (found := misfits.of_state(cell, state)) is not None:
            raise found  # (1, B, H), say, as torch.nn's layers take it
        if any(leaf.dtype != like.dtype for leaf in leaves) and not autocasting(like):
            self._check_dtypes(cell, inputs, batch, state, like)

    def _check_dtypes(self, cell: nn.Module, inputs: Structure, batch: Batch, state: Structure, like: Tensor) -> None:
        """Raises ValueError for a state of a floating-point dtype that neither an input, nor the cell, nor its own first state has. What a
        cell gives that is stepped is not known before."""
        allowed = first_states.dtypes(cell, flatten(inputs))
        if not allowed or self.reason is not None or not first_states.differing(state, allowed):
            return
        try:
            own = first_states.first_state(cell, self.initial_state, batch.size, like)
            if own is None and not torch.compiler.is_dynamo_compiling():
                own = self.programs.of_call(cell, inputs, None, 1 if batch.packed else 2, self.returns).state
        except NoDefault:
            own = None
        except Exception:  # the cell cannot say; the call tells what is wrong with it
            return
        own_dtypes = set() if own is None else {leaf.dtype for leaf in flatten(own)}
        if found := first_states.differing(state, allowed | own_dtypes):
            name, dtype = found
            expected = " or ".join(sorted(map(str, allowed)))
            raise ValueError(
                f"{name}: expected dtype {expected} like the input and the cell's parameters, got {dtype}; "
                "a cell whose state has another one says so by initial_state to fuse, or its get_initial_state"
            )

    def _as_program(
        self,
        cell: nn.Module,
        inputs: Structure,
        batch: Batch,
        state: Structure | None,
        every: bool,
        told: bool,
        anew: Structure | None,
    ) -> Result | None:
        """The result of the cell's program; None, with the reason noted, where there is none.

        inputs: rows of every step, (T, B, ...), with `batch.packed` (N, ...). state: (B, ...), or None where only the cell knows it, by the
        default of its state. told: whether the caller gave it. anew: what sequences begin anew with, likewise.
        """
        options, lead = layer.Options(not batch.packed, self.reverse, self.recompute, every), 1 if batch.packed else 2
        compiling = torch.compiler.is_dynamo_compiling()
        captured = None if compiling else self.programs.known(inputs, state, lead)
        if captured is None and told:  # a state like one that was run before is the cell's
            self._check_hx(cell, inputs, batch, state)
        if compiling:
            from sstkern.program import compiled  # here: it imports the compiler

            found = compiled.run(self, cell, inputs, state, batch.lengths, options, anew)
            return None if found is None else Result(*found)
        try:
            captured = captured or self.programs.of_call(cell, inputs, state, lead, self.returns)
        except Unfused as error:
            self._check_fit(cell, inputs, batch, state if told else None, error)
            self.unfused(cell, str(error))
            return None
        except NoDefault as error:
            raise ValueError(f"hx: {type(cell).__name__}'s state has a default, but {error}; give hx, or initial_state to fuse") from error
        self.fused, self.reason = True, None
        states = None if state is None else flatten(state)
        others = None if anew is None else flatten(anew)
        tensors = layer.run(captured, captured.leaves(), flatten(inputs), states, batch.lengths, options, others)
        return Result(*layer.results(tensors, captured.state if state is None else state))

    def _check_fit(self, cell: nn.Module, inputs: Structure, batch: Batch, hx: Structure | None, error: Unfused) -> None:
        """Raises TypeError or ValueError where the step is no program because it was given something else than it takes.

        hx: the caller's, if any.
        """
        unpacked = isinstance(error, Unpacked)  # where there are as many sequences as it takes, stepping would unpack those
        if unpacked and hx is None and first_states.is_guess(cell, self.initial_state):
            raise ValueError(
                f"hx: {type(cell).__name__} was given zeros of its hidden_size, one Tensor, as its state, and {error}; if its state is "
                "another one, give hx, or initial_state to fuse, or the cell a get_initial_state"
            ) from error
        if unpacked or (self.strict and isinstance(error, Failed)):  # where it is not strict, the error of stepping it tells more
            rows = inputs if batch.packed else mapped(inputs, lambda tensor: tensor.flatten(0, 1))
            if (found := misfits.of_arguments(cell, rows, hx)) is not None:
                raise found from error

    def unfused(self, cell: nn.Module, reason: str) -> None:
        """Notes why a cell is stepped. Raises NotFused with strict=True."""
        self.fused, self.reason = False, reason
        if self.strict:
            raise NotFused(f"{type(cell).__name__} cannot be run as a program: {reason}")

    def refused(self, cell: nn.Module, reason: str) -> None:
        """`unfused`, with the warning at once."""
        self.unfused(cell, reason)
        self._warn(cell)

    def _warn(self, cell: nn.Module) -> None:
        """Says once why a cell is stepped."""
        if self.reason is not None and not self.warned:
            self.warned = True
            warnings.warn(
                f"sstkern steps {type(cell).__name__} in Python, which is slow: {self.reason}", UserWarning, stacklevel=8
            )  # the layer's caller

    def explained(self, cell: nn.Module, source: bool) -> str:
        name = type(cell).__name__
        if self.reason is not None:
            return f"{name}: stepped in Python: {self.reason}"
        if self.programs.last is None:
            return f"{name}: has not been called yet"
        return f"{name}: runs as a program\n{layer.explanation(self.programs.last, cell, source)}"


def _to_caller(state: Tensor, batch: Batch) -> Tensor:
    """A last state (B, ...) in the order of the caller's sequences, without B where there was none."""
    state = state if batch.inverse is None else state.index_select(0, batch.inverse)
    return state if batch.batched else state.squeeze(0)


class FusedLayer(nn.Module):
    """What `fuse` makes."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first

    @one_thread
    def forward(
        self,
        input: Any,
        hx: Structure | None = None,
        *,
        lengths: Lengths | None = None,
        return_states: bool = False,
        resets: Resets | None = None,
        reset_to: Structure | None = None,
    ) -> tuple[Any, ...]:
        """The output and the last states, with return_states all states besides.

        input: (T, B, ...), with batch_first (B, T, ...), unbatched (T, I), a PackedSequence or a jagged nested tensor (B, *, ...); or a
        tuple of such that go together, of which the cell is given a tuple of one step's. hx: the states before the first step, (B, ...)
        each; with two cells a pair. lengths: B integers from 0 to T, in any order; what an input holds past a length is never read.

        resets: bool (T, B), with batch_first (B, T), unbatched (T,), packed or nested where the input is: True at step t where a sequence
        begins anew with it, and the state before t is reset_to, as hx or of one sequence, (1, ...); by default what a call without hx
        begins with. The direction from the last step to the first begins anew at t - 1 (docs/episodes.md).

        Returns the output in the form of the input, zero past a length, and hx_n, each sequence's own last states, in the structure of hx.
        All states are those after every step, each at its input's place: (T, B, ...) whatever batch_first, or in the form of a packed or
        nested input; zero past a length.

        Raises TypeError or ValueError for what does not fit, naming the argument, and NotFused with strict=True.
        """
        inputs, batch = to_batches(input, lengths, self.batch_first, resets)
        if resets is None and reset_to is not None:
            raise ValueError("reset_to: without resets nothing begins anew; give resets, or the first states as hx")
        output, hx_n, states = self._run(inputs, batch, hx, return_states, reset_to)
        results = batch.restore(output), hx_n
        return (*results, mapped(states, lambda state: _every(state, batch))) if return_states else results

    def _run(self, inputs: Structure, batch: Batch, hx: Structure | None, every: bool, reset_to: Structure | None) -> Result:
        raise NotImplementedError

    def _directions(self) -> list[tuple[Direction, nn.Module]]:
        raise NotImplementedError

    def _cells(self) -> list[nn.Module]:
        """One, or that of each direction."""
        return [cell for _, cell in self._directions()]

    @property
    def fused(self) -> bool:
        """Whether the last call ran as a program; False before the first call."""
        return all(direction.fused for direction, _ in self._directions())

    @property
    def reason(self) -> str | None:
        """Why the last call did not; None before the first call."""
        reasons = dict.fromkeys(direction.reason for direction, _ in self._directions() if direction.reason is not None)
        return "; ".join(reasons) or None

    def explain(self, source: bool = False) -> None:
        """Prints what the last call ran: what is computed before, in and after the loop over time steps and saved for the backward; or why
        the cell is stepped in Python. source: with the program's text and that of its derivative."""
        for direction, cell in self._directions():
            print(direction.explained(cell, source))


def _every(state: Tensor, batch: Batch) -> Any:
    """A state after every step, (T, B, ...) or (N, ...), in the caller's form."""
    if batch.packed:
        return batch.restore(state)
    return state if batch.batched else state.squeeze(1)


class Fused(FusedLayer):
    """A layer of one cell, whose parameters, buffers and modules are the layer's own: the two share the dictionaries that have them."""

    def __init__(self, cell: nn.Module, direction: Direction, batch_first: bool):
        super().__init__(batch_first)
        vars(self)["_cell"] = cell  # not as a child: that would put its name before its parameters'
        self._direction = direction
        private.share_members(self, cell)
        taken = [name for name, module in cell.named_children() if name != "cell" and getattr(self, name) is not module]
        if taken:
            raise ValueError(f"cell: its module '{taken[0]}' has a name that the layer has for something else; give it another one")

    @property
    def cell(self) -> nn.Module:
        """The module that `fuse` was given."""
        return vars(self)["_cell"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cell":
            raise AttributeError("cell: a layer keeps its cell; make a new layer of another one: sstkern.fuse(cell)")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._parameters or name in self._buffers or name in self._modules:
            raise AttributeError(f"{name}: it is the cell's; change (parametrize, prune) layer.cell, whose forward reads it")
        super().__delattr__(name)

    def _run(self, inputs: Structure, batch: Batch, hx: Structure | None, every: bool, reset_to: Structure | None) -> Result:
        if "cell" in self._modules:
            self._check_call()
        return self._direction.run(self.cell, inputs, batch, hx, every, reset_to)

    def _check_call(self) -> None:
        """torch.func.functional_call asks the layer for a module by its name. One called "cell" it does not find, but the cell around it,
        and leaves the tensors there, where nothing reads them."""
        module = self._modules["cell"]
        named = {} if module is None else {**module._parameters, **module._buffers}
        lost = [name for name in named if name in vars(self.cell)]
        if lost:
            raise RuntimeError(f"{lost[0]}: torch.func.functional_call does not reach the cell's module 'cell'; give it another name")

    def _directions(self) -> list[tuple[Direction, nn.Module]]:
        return [(self._direction, self.cell)]

    def train(self, mode: bool = True) -> Fused:
        """Sets the mode of the cell itself too, which is no child."""
        self.cell.train(mode)
        self.training = mode
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> Fused:
        """Applies `fn` to the cell itself too."""
        self.cell.apply(fn)
        fn(self)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fused:
        """What .to() and its like are made of; the cell may have its own."""
        self.cell._apply(fn, recurse)
        return self

    @property
    def _version(self) -> int:  # type: ignore[override]
        """The version of the state_dict's form."""
        return self.cell._version

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.cell._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.cell._load_from_state_dict(*arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy, whose cell may have been copied in a way of its own."""
        super().__setstate__(state)
        private.share_members(self, self.cell)

    def _get_name(self) -> str:
        return f"Fused{type(self.cell).__name__}"

    def extra_repr(self) -> str:
        return self.cell.extra_repr()


def _pair(states: Structure | None, name: str) -> Structure:
    """A state for each direction; raises TypeError for what is no pair."""
    if states is None:
        return (None, None)
    if not isinstance(states, tuple | list) or len(states) != 2:
        raise TypeError(f"{name}: expected a pair, the state of each direction, got {described(states)}")
    return states


class FusedBothWays(FusedLayer):
    """A layer of two cells, one for each direction."""

    def __init__(self, forward_cell: nn.Module, backward_cell: nn.Module, directions: list[Direction], batch_first: bool):
        super().__init__(batch_first)
        self.forward_cell, self.backward_cell = forward_cell, backward_cell
        self._both = directions

    def _run(self, inputs: Structure, batch: Batch, hx: Structure | None, every: bool, reset_to: Structure | None) -> Result:
        runs = zip(self._directions(), _pair(hx, "hx"), _pair(reset_to, "reset_to"), strict=True)
        found = []
        for (direction, cell), state, anew in runs:  # no comprehension, which is one more frame between a warning and the layer's caller
            found.append(direction.run(cell, inputs, batch, state, every, anew))
        outputs, last, states = zip(*found, strict=True)
        rows = 1 if batch.packed else 2
        if any(output.dim() == rows for output in outputs):
            raise ValueError("backward_cell: outputs stand side by side in their last dimension, but a cell's output has only that of B")
        return Result(torch.cat(outputs, dim=-1), last, states if every else None)

    def _directions(self) -> list[tuple[Direction, nn.Module]]:
        return list(zip(self._both, (self.forward_cell, self.backward_cell), strict=True))
