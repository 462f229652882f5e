"""Derivatives of a layer's gradients, of any order, by autograd through its forward in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from sstkern.engines.reference import Linear
from sstkern.engines.steps import cat
from sstkern.forked import one_thread

Gradients = Sequence[Tensor | None]


@one_thread
def second_derivative(
    forward: Callable[[Sequence[Tensor], Linear], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Differentiates the first derivative, which took the gradients of forward(inputs) to those of the inputs that `needs` has a True for.

    forward: is given, beside the inputs, torch's `linear`, for the products of its time steps; an input that is a matrix or bias of such a
    product is used for nothing else. grads: the gradients of those that are needed, None where nothing depends on one: it is not computed
    again. wanted: a flag for each of `inputs` and then of `gradients`. Returns their gradients, None without the flag, which can be
    differentiated again.
    """
    known, differentiable = iter(grads), torch.is_grad_enabled()
    of_first = [next(known) if need else None for need in needs]
    if all(grad is None for grad in of_first):
        return [None] * len(wanted)
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        # The caller's own tensors: what is recorded here may itself be differentiated.
        given = [
            _alias(tensor) if want or grad is not None else tensor for tensor, want, grad in zip(inputs, wanted, of_first, strict=False)
        ]
        directions = [_alias(tensor) if want else tensor for tensor, want in zip(gradients, wanted[len(inputs) :], strict=True)]
        used = [tensor for tensor, grad in zip(given, of_first, strict=True) if grad is not None]
        products = Products()
        first = products.first(forward(given, products.linear), used, directions)
        varied = [tensor for tensor, want in zip((*given, *directions), wanted, strict=True) if want]
        outer = [grad for grad in of_first if grad is not None]
        second = iter(products.second(first, varied, outer, differentiable))
    return [next(second) if want else None for want in wanted]


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


class _Product(NamedTuple):
    rows: Tensor
    weight: Tensor
    bias: Tensor | None
    result: Tensor


class Products:
    """A forward's products with matrices, one a time step, and derivatives with the gradients of these matrices from all steps at once.

    Autograd would make a matrix's gradient at each step, and add them up. Here it is asked for the gradients of the products' results
    instead: of result = rows W^T the gradient of W is (gradient of result)^T rows. The first derivative has a product at each step as
    well, (gradient of result) W, which is a part of the gradient of rows: W's is (gradient of result)^T (gradient of that).
    """

    def __init__(self) -> None:
        self.made: list[_Product] = []
        self.of_rows: Gradients = ()
        self.of_results: Gradients = ()

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = linear(rows, weight, bias)
        self.made.append(_Product(rows, weight, bias, result))
        return result

    def first(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of the inputs, which can be differentiated; zeros where nothing depends on one."""
        rows, results = [product.rows for product in self.made], [product.result for product in self.made]
        others, self.of_rows, self.of_results = _gradients(outputs, (self._others(inputs), rows, results), grads, create_graph=True)
        found = self._all(inputs, others, self._terms(self.of_results))
        return [torch.zeros_like(tensor, requires_grad=True) if grad is None else grad for tensor, grad in zip(inputs, found, strict=True)]

    def second(self, first: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor], differentiable: bool) -> Gradients:
        """The gradients of the inputs from those of what `first` returned; None where nothing depends on one."""
        wanted = self._others(inputs), self.of_rows, [product.result for product in self.made]
        others, of_rows, of_results = _gradients(first, wanted, grads, create_graph=differentiable)
        of_first = [(product.weight, *factors) for product, *factors in zip(self.made, self.of_results, of_rows, strict=True)]
        with torch.set_grad_enabled(differentiable):
            return self._all(inputs, others, [*self._terms(of_results), *of_first])

    def _others(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs that are no matrix or bias of a product."""
        mine = {id(part) for product in self.made for part in (product.weight, product.bias)}
        return [tensor for tensor in inputs if id(tensor) not in mine]

    def _terms(self, of_results: Gradients) -> list[tuple]:
        """Each weight with both factors of its gradient, each bias with the rows whose sum its gradient is."""
        weights = [(product.weight, gradient, product.rows) for product, gradient in zip(self.made, of_results, strict=True)]
        return [*weights, *((product.bias, gradient) for product, gradient in zip(self.made, of_results, strict=True))]

    def _all(self, inputs: Sequence[Tensor], others: Gradients, terms: Sequence[tuple]) -> list[Tensor | None]:
        """The gradients of the inputs: the others' as they are, and sums of the terms."""
        summed: dict[int, list] = {id(tensor): [] for tensor in inputs}
        for tensor, *parts in terms:
            if id(tensor) in summed and all(part is not None for part in parts):
                summed[id(tensor)].append(parts)
        known = dict(zip(map(id, self._others(inputs)), others, strict=True))
        return [known[id(tensor)] if id(tensor) in known else _sum(summed[id(tensor)]) for tensor in inputs]


def _sum(terms: Sequence[Sequence[Tensor]]) -> Tensor | None:
    if not terms:
        return None
    left, *right = (cat(rows) for rows in zip(*terms, strict=True))
    return left.T @ right[0] if right else left.sum(0)


def _gradients(outputs: Sequence[Tensor], groups: Sequence[Gradients], grads: Sequence[Tensor], create_graph: bool) -> list[Gradients]:
    """The gradients of each group's tensors, None where nothing depends on one."""
    wanted = [tensor for tensor in chain(*groups) if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph, allow_unused=True) if wanted else ())
    return [[next(found) if tensor is not None and tensor.requires_grad else None for tensor in group] for group in groups]
