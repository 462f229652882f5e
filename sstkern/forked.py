"""In a process made by os.fork(), a call of a layer runs on one thread, forward and backward.

fork() copies OpenMP's record of its threads, but not the threads. The child's first parallel region waits for them forever, in torch's
operators as in ours: in the zeros of a first state as soon as they are many. The C++ engine sees to its own operators (csrc/forked.h);
here it is all that a call is made of. A backward that ends with an error leaves the child one thread.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from sstkern import private
from sstkern.structure import flatten

P = ParamSpec("P")
R = TypeVar("R")

_in_child = False


def _note() -> None:
    global _in_child
    _in_child = True


os.register_at_fork(after_in_child=_note)


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs on one thread in a forked child, and so does the backward of its results."""

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        if not _in_child or torch.compiler.is_compiling():
            return function(*arguments, **options)
        with _one_thread():
            results = function(*arguments, **options)
        follow(flatten(results))
        return results

    return called


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def follow(results: Iterable[Any]) -> None:
    """In a forked child: a backward that comes to one of these tensors has one thread from there to its end, since gradients are also
    added up, cast and filled with zeros where no function of ours is called."""
    if not _in_child or torch.compiler.is_compiling():
        return
    for tensor in results:
        if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
            tensor.register_hook(_one_thread_to_the_end)


def _one_thread_to_the_end(_gradient: Tensor) -> None:
    if (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(1)
        private.after_backward(partial(torch.set_num_threads, threads))
