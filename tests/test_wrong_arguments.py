"""Wrong arguments, and unusual ones, given to torch.nn's layers and cells and to ours: the same comes of them, but for `DIFFERENCES`."""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn, zeros
from torch.nn.utils.rnn import pack_sequence

import sstkern

LAYERS, CELLS = ("LSTM", "GRU", "RNN"), ("LSTMCell", "GRUCell", "RNNCell")


class Difference(NamedTuple):
    cases: str
    """A pattern of their names."""
    theirs: tuple[type[Exception], ...] | None
    """What torch.nn raises; None for nothing."""
    ours: type[Exception] | None
    message: str
    """A pattern of our message."""
    why: str


_BY_ACCIDENT = (AttributeError, IndexError, TypeError, KeyError)
DIFFERENCES = (
    Difference(
        r"\w+ input (None|array|list|tuple|str)",
        (AttributeError,),
        TypeError,
        r"^input: expected a Tensor.*, got (NoneType|ndarray|list|tuple|str)$",
        "torch.nn asks it for `dim`",
    ),
    Difference(
        r"\w+ .*hx .*",
        _BY_ACCIDENT,
        RuntimeError,
        r"^hx: expected [12] Tensor\(s\) \(h(, c)?\), got (\(.*\)|a .*)$|^hx: expected [hc](_0)? of shape \(.*\), got \(.*\)$",
        "a wrong hx is a RuntimeError whatever is wrong with it; torch.nn's error is what first goes wrong inside",
    ),
    Difference(
        r"LSTMCell .*hx .*",
        (ValueError,),
        RuntimeError,
        r"^hx: expected 2 Tensor\(s\) \(h, c\), got (\(.*\)|a .*)$",
        "what torch.nn says of the first state or of the rows of a Tensor; the number of states is what is wrong",
    ),
    Difference(
        r"LSTM(Cell)? \(\d,( 3)?\) hx (rows|batch|h, c, c)",
        None,
        RuntimeError,
        r"^hx: expected 2 Tensor\(s\)",
        "of an unbatched input torch.nn takes hx[0] and hx[1], whatever else there is, and whatever it is",
    ),
    Difference(r"LSTMCell .*hx h, c64", None, RuntimeError, "of dtype", "torch.nn's result then has the dtype of c"),
    Difference(r"\w+ packed 64", (RuntimeError,), ValueError, "^input: expected dtype", "it is a ValueError, as of a padded input"),
    Difference(
        r"\w+ input .*(T|cell's B) 0.*",
        (RuntimeError,),
        None,
        "",
        "no steps: nothing comes out, the states stay",
    ),
    Difference(r"(GRU|RNN)\(proj_size=(0|False)\)", (ValueError,), None, "", "0 asks for no projection"),
    Difference(r"(RNN\(hidden_size|LSTM\(proj_size)=True\)", (TypeError,), None, "", "True is 1, as it is to torch.nn elsewhere"),
    Difference(
        r"RNNCell\(nonlinearity=.*\)",
        None,
        ValueError,
        "^nonlinearity: expected 'tanh' or 'relu'",
        "torch.nn's raises when it is called",
    ),
    Difference(r"\w+Cell\(bias=.*\)", None, None, "", "it is kept as True or False; what it does is the same"),
)

VALUES = {
    "0": 0,
    "-1": -1,
    "2.5": 2.5,
    "None": None,
    "'2'": "2",
    "True": True,
    "False": False,
    "int64": np.int64(2),
    "tensor": torch.tensor(2),
    "[2]": [2],
    "nan": float("nan"),
}
OPTIONS = {
    "Layer": ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size", "device", "dtype"),
    "Cell": ("input_size", "hidden_size", "bias", "device", "dtype"),
}
INPUTS = {
    "None": None,
    "array": np.zeros((5, 2, 3), "float32"),
    "list": [[[0.0] * 3] * 2] * 5,
    "tuple": (zeros(5, 2, 3),),
    "str": "x",
    "T 0": zeros(0, 2, 3),
    "T 0, unbatched": zeros(0, 3),
    "T 0, B 0": zeros(0, 0, 3),
    "B 0": zeros(5, 0, 3),
    "a cell's B 0": zeros(0, 3),
    "features": zeros(5, 2, 7),
    "a cell's features": zeros(2, 7),
    "no features": zeros(5, 2, 0),
    **{f"{d}-D": zeros((3,) * d) for d in range(5)},
    **{str(dtype): zeros(5, 3, 3, dtype=dtype) for dtype in (torch.int32, torch.bool, torch.float64, torch.bfloat16, torch.complex64)},
    "meta": zeros(5, 2, 3, device="meta"),
}
UNCHECKED = {f"{name}, {name}" for name in ("batch", "hidden", "rank", "rank 0", "rows", "meta", "64")} | {"h, c wrong", "h, c64"}
"""torch.nn.LSTM does not check these of a PackedSequence, and reads past their end."""


def states(shape: tuple[int, ...]) -> dict[str, object]:
    """What hx may be by mistake, where h should have this shape."""
    right, double, array = zeros(shape), zeros(shape, dtype=torch.float64), np.zeros(shape, "float32")
    sized = {"batch": (*shape[:-2], 7, shape[-1]), "hidden": (*shape[:-1], 7), "rank": (1, *shape), "rank 0": ()}
    wrong = {name: zeros(size) for name, size in sized.items()}
    alone = {
        "h": right,
        "64": double,
        "array": array,
        "str": "hc",
        "0": 0,
        "dict": {"h": right},
        "meta": zeros(shape, device="meta"),
    } | wrong
    alone["rows"] = zeros(2, *shape)
    pairs = {f"{name}, {name}": (value, value) for name, value in alone.items()}
    others = {"[h, c]": [right, right], "(h,)": (right,), "h, c, c": (right,) * 3, "h, None": (right, None), "None, None": (None, None)}
    return {**alone, **pairs, **others, "()": (), "h, c64": (right, double), "h, c wrong": (right, wrong["hidden"])}


def grid() -> Iterator[tuple[str, Callable]]:
    for kind in (*LAYERS, *CELLS):
        options = OPTIONS["Cell" if kind in CELLS else "Layer"] + (("nonlinearity",) if kind == "RNNCell" else ())
        for option in (*options, "unknown"):
            for name, value in VALUES.items():
                sizes = {"input_size": 3, "hidden_size": 4, option: value}
                yield f"{kind}({option}={name})", lambda of, kind=kind, sizes=sizes: getattr(of, kind)(**sizes)
        yield f"{kind}(3)", lambda of, kind=kind: getattr(of, kind)(3)
        for name, value in INPUTS.items():
            yield f"{kind} input {name}", lambda of, kind=kind, value=value: getattr(of, kind)(3, 4)(value)
        shapes = {(2, 3): (2, 4), (3,): (4,)} if kind in CELLS else {(5, 2, 3): (1, 2, 4), (5, 3): (1, 4)}
        for shape, of_states in shapes.items():
            for name, hx in states(of_states).items():
                yield f"{kind} {shape} hx {name}", lambda of, kind=kind, shape=shape, hx=hx: getattr(of, kind)(3, 4)(zeros(shape), hx)
    for kind in LAYERS:
        packed = {"": pack_sequence([zeros(5, 3), zeros(2, 3)]), "features": pack_sequence([zeros(5, 7), zeros(2, 7)])}
        packed["64"] = pack_sequence([zeros(5, 3).double()])
        for name, value in packed.items():
            yield f"{kind} packed {name}", lambda of, kind=kind, value=value: getattr(of, kind)(3, 4)(value)
        for name, hx in states((1, 2, 4)).items():
            if kind == "LSTM" and name in UNCHECKED:
                continue
            yield f"{kind} packed hx {name}", lambda of, kind=kind, hx=hx, value=packed[""]: getattr(of, kind)(3, 4)(value, hx)
    for kind in CELLS:
        for shape in ((3,), (2, 3)):
            yield f"{kind} without units {shape}", lambda of, kind=kind, shape=shape: getattr(of, kind)(3, 0)(zeros(shape))
            yield f"{kind} without inputs {shape}", lambda of, kind=kind, shape=shape: getattr(of, kind)(0, 4)(zeros(*shape[:-1], 0))


GRID = dict(grid())


def outcome(call: Callable, of) -> Exception | object:
    """The error, or what there is to compare of the result."""
    try:
        with warnings.catch_warnings(action="ignore"):
            result = call(of)
    except Exception as error:
        return error
    return repr(result) if isinstance(result, nn.Module) else shapes(result)


def shapes(result: object) -> object:
    if isinstance(result, Tensor):
        return result.shape, result.dtype
    return tuple(shapes(part) for part in result) if isinstance(result, tuple) else result


def same(theirs: object, ours: object) -> bool:
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        return isinstance(ours, type(theirs)) and isinstance(theirs, Exception)
    return theirs == ours


def explains(difference: Difference, name: str, theirs: object, ours: object) -> bool:
    expected = ((difference.theirs, theirs), (difference.ours, ours))
    kinds = all(isinstance(found, Exception if kind is None else kind) == (kind is not None) for kind, found in expected)
    return kinds and bool(re.fullmatch(difference.cases, name)) and bool(re.search(difference.message, str(ours)))


def test_the_same_comes_of_them():
    unexplained, used = [], set()
    for name, call in GRID.items():
        theirs, ours = outcome(call, nn), outcome(call, sstkern)
        if not same(theirs, ours):
            found = [difference for difference in DIFFERENCES if explains(difference, name, theirs, ours)]
            used |= {difference.why for difference in found}
            if not found:
                unexplained.append(f"{name}: torch.nn {theirs!r}, ours {ours!r}")
    assert not unexplained, "\n".join(unexplained)
    assert len(GRID) > 800
    assert used == {difference.why for difference in DIFFERENCES}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_without_units_has_gradients(kind):
    for of in (nn, sstkern):
        cell, x = getattr(of, kind)(3, 0), zeros(2, 3, requires_grad=True)
        result = cell(x)
        (result if isinstance(result, Tensor) else result[0]).sum().backward()
        assert torch.equal(x.grad, zeros(2, 3))
        assert cell.weight_ih.grad.shape == cell.weight_ih.shape


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_a_weight_that_is_none_is_told(kind):
    suffix = "" if kind in CELLS else "_l0"
    layer = getattr(sstkern, kind)(3, 4)
    for place, name in ((3, "bias_hh"), (0, "weight_ih")):
        setattr(layer, name + suffix, None)
        with pytest.raises(TypeError, match=rf"weights: expected Tensors \(weight_ih, .*, got NoneType at place {place} of 4"):
            layer(zeros(5, 3))
