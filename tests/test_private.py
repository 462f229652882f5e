"""PyTorch's private names are in `sstkern/private.py` and nowhere else in the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sstkern
from sstkern import private

PACKAGE = Path(sstkern.__file__).parent
EXCEPTIONS = {
    ("modules.py", "_parameters"): "our layers are torch.nn.Modules, and it is theirs",
    ("fuse.py", "_parameters"): "our layers are torch.nn.Modules, and it is theirs",
    ("fuse.py", "_buffers"): "our layers are torch.nn.Modules, and it is theirs",
    ("fuse.py", "_modules"): "our layers are torch.nn.Modules, and it is theirs",
    ("modules.py", "_flat_weights_names"): "our layers are torch.nn.RNNBases, and it is theirs",
    ("modules.py", "_init_flat_weights"): "our layers are torch.nn.RNNBases, and it is theirs",
    ("modules.py", "_update_flat_weights"): "our layers are torch.nn.RNNBases, and it is theirs",
    ("text/trainer.py", "_foreach_lerp_"): "torch documents its operators on lists of tensors under names like this",
    ("text/trainer.py", "_foreach_copy_"): "torch documents its operators on lists of tensors under names like this",
    ("bench/compiled.py", "_dynamo"): "torch documents the compiler's settings under this name",
    ("bench/compiled.py", "_inductor"): "torch documents the compiler's settings under this name",
    ("bench/resets.py", "_process_sequence"): "sb3-contrib's way of doing it, which is what is timed",
    ("bench/ways.py", "_higher_order_ops"): "torch has its scan under this name",
}
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: dict[str, ast.Module]) -> set[str]:
    """What the package itself defines: functions, classes, variables and attributes."""
    found = set(NAMED_TUPLE)
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def of_torch(tree: ast.Module) -> set[str]:
    """The names under which a module has torch, or a part of it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] == "torch"}
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "torch":
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names in imports from torch, behind a name that stands for a part of torch, or that the package does not define."""
    torchs = of_torch(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if node.attr not in own or (isinstance(root, ast.Name) and root.id in torchs):
                yield node.attr
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in parts(alias.name) if is_private(part))
        elif isinstance(node, ast.ImportFrom):
            yield from (part for alias in node.names for part in parts(f"{node.module}.{alias.name}") if is_private(part))


def parts(name: str) -> list[str]:
    first, *rest = name.split(".")
    return rest if first == "torch" else []


def test_they_are_in_one_file():
    trees = {str(file.relative_to(PACKAGE)): ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}
    own = own_names(trees)
    found = {(file, name) for file, tree in trees.items() for name in private_names(tree, own)}
    assert ("private.py", "_C") in found
    assert {(file, name) for file, name in found if file != "private.py"} - set(EXCEPTIONS) == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\ntorch._C._functorch.get_unwrapped", {"_C", "_functorch"}),
        ("import torch._dynamo", {"_dynamo"}),
        ("from torch._higher_order_ops.scan import scan", {"_higher_order_ops"}),
        ("from torch.autograd import forward_ad\nforward_ad._current_level", {"_current_level"}),
        ("from torch import Tensor\nTensor._mine", {"_mine"}),
        ("def f(x):\n    return x._ragged_idx", {"_ragged_idx"}),
        ("import torch\nself._mine\ntorch.__version__\nrow._replace", set()),
        ("from sstkern.text import _mine\nfrom __future__ import annotations", set()),
    ],
)
def test_they_would_be_found(source: str, names: set[str]):
    assert set(private_names(ast.parse(source), {"_mine", *NAMED_TUPLE})) == names


def test_transforms_are_told_apart():
    seen = []

    def see(x):
        seen.append((private.transforms_active(), private.forward_transform_active(), private.without_transforms(x).shape))
        return x.sum()

    torch.func.vmap(torch.func.grad(see))(torch.ones(3, 2))
    torch.func.jvp(see, (torch.ones(2),), (torch.ones(2),))
    assert seen == [(True, False, (3, 2)), (True, True, (2,))]
    assert not private.transforms_active()


def test_a_dual_level_is_seen():
    assert not private.in_dual_level()
    with torch.autograd.forward_ad.dual_level():
        assert private.in_dual_level()


@pytest.mark.parametrize("dim", [1, 2])
def test_the_ragged_dimension(dim: int):
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    assert private.ragged_dimension(nested.transpose(1, dim)) == dim
