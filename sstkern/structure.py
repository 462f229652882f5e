"""States and inputs as a cell has them: a tensor, or nested tuples and lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor

Structure = Any
"""A Tensor, or a tuple or list of structures, named tuples included."""
Returns = Literal["auto", "state", "output_and_state"]
_SEQUENCES = (tuple, list)
"""Every call asks a dozen times; `tuple | list` would be made each time."""


def flatten(structure: Structure) -> list[Any]:
    """The leaves, in order. What is neither a tuple nor a list is one."""
    if not isinstance(structure, _SEQUENCES):
        return [structure]
    found: list[Any] = []
    for part in structure:
        if isinstance(part, _SEQUENCES):
            found += flatten(part)
        else:
            found.append(part)
    return found


def unflatten(like: Structure, leaves: list[Any]) -> Structure:
    """The structure of `like` with other leaves."""
    return _filled(like, iter(leaves)) if isinstance(like, _SEQUENCES) else leaves[0]


def _filled(like: Structure, rest: Iterator[Any]) -> Structure:
    return of_parts(like, [_filled(part, rest) if isinstance(part, _SEQUENCES) else next(rest) for part in like])


def mapped(structure: Structure, change: Callable[[Any], Any]) -> Structure:
    """Each leaf changed, in order."""
    if not isinstance(structure, _SEQUENCES):
        return change(structure)
    return of_parts(structure, [mapped(part, change) if isinstance(part, _SEQUENCES) else change(part) for part in structure])


def of_parts(structure: Structure, parts: list[Structure]) -> Structure:
    """A list, tuple or named tuple, as the structure is one, of other parts."""
    if isinstance(structure, list):
        return parts
    named = type(structure) is not tuple and hasattr(structure, "_fields")
    return type(structure)(*parts) if named else tuple(parts)


def names(structure: Structure, name: str) -> list[str]:
    """The names of the leaves, as Python indexes them: `hx[0]`, `hx[1][0]`."""
    if not isinstance(structure, tuple | list):
        return [name]
    return [found for place, part in enumerate(structure) for found in names(part, f"{name}[{place}]")]


def same(a: Structure, b: Structure) -> bool:
    """Whether two structures differ in their leaves only; a list is not a tuple, but a named tuple is."""
    if isinstance(a, tuple | list) != isinstance(b, tuple | list):
        return False
    if not isinstance(a, tuple | list):
        return True
    return isinstance(a, list) == isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))


def described(structure: Structure) -> str:
    """The structure in words: `(Tensor, [Tensor])`."""
    if isinstance(structure, list):
        return f"[{', '.join(map(described, structure))}]"
    if isinstance(structure, tuple):
        return f"({', '.join(map(described, structure))}{',' if len(structure) == 1 else ''})"
    return "Tensor" if isinstance(structure, Tensor) else type(structure).__name__


def split_result(result: Structure, state: Structure, returns: Returns) -> tuple[Tensor, Structure]:
    """A step's output and its new state, from what the cell returned, given a state of the known structure.

    Raises TypeError where it is neither a state nor a pair of an output and a state, as `returns` says or allows.
    """
    is_state = same(result, state) and returns != "output_and_state"
    is_pair = returns != "state" and isinstance(result, tuple | list) and len(result) == 2 and same(result[1], state)
    if is_state:
        return flatten(result)[0], result
    if is_pair and isinstance(result[0], Tensor):
        return result[0], result[1]
    new = f"the new state {described(state)}, as it was given"
    expected = {
        "state": new,
        "output_and_state": f"(output, state), a Tensor and {new}",
        "auto": f"{new}, or (output, state)",
    }[returns]
    raise TypeError(f"cell: expected it to return {expected}, got {described(result)} (returns={returns!r})")


def split_first_result(result: Structure, returns: Returns) -> tuple[Tensor, Structure]:
    """A step's output and its new state, where the state's structure is not known before.

    Raises ValueError where the result may be read both ways, and TypeError where it is not what `returns` says.
    """
    may_be_pair = isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[0], Tensor)
    if returns == "auto" and may_be_pair:
        raise ValueError(
            f"returns: the cell's result {described(result)} may be a new state, or an output and a state; say which with returns='state' "
            "or returns='output_and_state', or give hx"
        )
    return split_result(result, result[1] if returns == "output_and_state" and may_be_pair else result, returns)
