"""Derivatives beyond the first: torch.func's transforms, forward mode, gradient penalties, learning to learn."""

from contextlib import nullcontext

import pytest
import torch
from layers import FUSED, fused_runs
from torch import Tensor, nn
from torch._vmap_internals import _vmap
from torch.autograd import forward_ad, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import sstkern

LENGTHS = torch.tensor([3, 0, 2])
KINDS = {
    "LSTM": lambda: sstkern.LSTM(2, 3, bidirectional=True, proj_size=2, dtype=torch.float64),
    "GRU": lambda: sstkern.GRU(2, 3, 2, dtype=torch.float64),
    "RNN": lambda: sstkern.RNN(2, 3, dtype=torch.float64),
}

ONE_STEP = {
    "LSTMCell": lambda: sstkern.LSTMCell(2, 3, dtype=torch.float64),
    "GRUCell": lambda: sstkern.GRUCell(2, 3, bias=False, dtype=torch.float64),
    "RNNCell": lambda: sstkern.RNNCell(2, 3, dtype=torch.float64),
}


@pytest.fixture(params=KINDS)
def layer(request) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[request.param]()


def inputs() -> tuple[Tensor, Tensor]:
    """x and a direction."""
    x, direction = torch.randn(2, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, direction


def output_of(layer: nn.Module):
    if isinstance(layer, nn.RNNBase):
        return lambda x: layer(x, lengths=LENGTHS)[0]

    def states(x: Tensor) -> Tensor:
        hx = layer(x.flatten(0, 1))
        return torch.stack(hx) if isinstance(hx, tuple) else hx

    return states


TRANSFORMS = {
    "grad": lambda f, x, d: grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x, d: vjp(f, x)[1](f(d))[0],
    "jvp": lambda f, x, d: jvp(f, (x,), (d,))[1],
    "jacrev": lambda f, x, d: jacrev(f)(x),
    "jacfwd": lambda f, x, d: jacfwd(f)(x),
    "hessian": lambda f, x, d: hessian(lambda x: f(x).square().sum())(x),
    "jacrev of jacrev": lambda f, x, d: jacrev(jacrev(lambda x: f(x).square().sum()))(x),
    "vmap": lambda f, x, d: vmap(f)(torch.stack([x, d])),
    "vmap of grad": lambda f, x, d: vmap(grad(lambda x: f(x).square().sum()))(torch.stack([x, d])),
    "grad of vmap": lambda f, x, d: grad(lambda both: vmap(f)(both).square().sum())(torch.stack([x, d])),
}
FORWARD_MODE = ("jvp", "jacfwd", "hessian")


def jacobian(function, x: Tensor) -> Tensor:
    """Central differences."""
    units = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape) * 1e-5
    columns = [(function(x + unit) - function(x - unit)) / 2e-5 for unit in units]
    return torch.stack(columns, -1).unflatten(-1, x.shape)


def differences(name: str, f, x: Tensor, d: Tensor) -> Tensor:
    """What a transform should give, by differences of the function or of its first derivative, or one by one."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x).square().sum(), x)[0]

    match name:
        case "grad":
            return gradient(x)
        case "vjp":
            return torch.tensordot(f(d), jacobian(f, x), f(d).dim())
        case "jvp":
            return (f(x + 1e-6 * d) - f(x - 1e-6 * d)) / 2e-6
        case "hessian" | "jacrev of jacrev":
            return jacobian(gradient, x)
        case "vmap":
            return torch.stack([f(x), f(d)])
        case "vmap of grad" | "grad of vmap":
            return torch.stack([gradient(x), gradient(d)])
    return jacobian(f, x)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("kind", [*KINDS, *ONE_STEP])
def test_a_transform_is_the_reference_engines_and_the_differences(kind, name):
    torch.manual_seed(0)
    layer = (KINDS | ONE_STEP)[kind]()
    f, (x, d), before = output_of(layer), inputs(), fused_runs()
    with nullcontext() if name in FORWARD_MODE else sstkern.backend(FUSED):
        found = TRANSFORMS[name](f, x, d)
    ran = {way for way, count in fused_runs().items() if way != "threads" and count > before[way]}
    assert ran == (set() if name in FORWARD_MODE else {"forward"} if name == "vmap" else {"forward", "backward"})
    with sstkern.backend("reference"):
        torch.testing.assert_close(found, TRANSFORMS[name](f, x, d), rtol=1e-12, atol=1e-14)
    with torch.no_grad() if "grad" not in name and name not in ("hessian", "jacrev of jacrev") else torch.enable_grad():
        torch.testing.assert_close(found, differences(name, f, x, d), rtol=1e-6, atol=1e-8)
    assert found.abs().max() > 1e-3


def gradients_alone(layer, x: Tensor, lengths: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(layer(x, lengths=lengths)[0].square().sum(), list(layer.parameters())))


def test_gradients_of_each_sample(layer):
    x, _ = inputs()
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, length: Tensor) -> Tensor:
        return functional_call(layer, weights, (x[:, None],), {"lengths": length[None]})[0].square().sum()

    before = fused_runs()
    found = vmap(grad(loss), in_dims=(None, 1, 0))(weights, x, LENGTHS)
    after = fused_runs()
    assert after["backward"] - before["backward"] == layer.num_layers  # not one for each sample
    for row in range(3):
        alone = gradients_alone(layer, x[:, row : row + 1], LENGTHS[row : row + 1])
        for name, gradient in zip(weights, alone, strict=True):
            torch.testing.assert_close(found[name][row], gradient, rtol=1e-10, atol=1e-12)


def test_gradients_of_samples_of_samples(layer):
    """Two dimensions of samples, each sample a batch of three."""
    x = torch.randn(4, 3, 2, 3, 2, dtype=torch.float64)  # T, B, two dimensions of samples, I
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    lengths = torch.tensor([[4, 0, 2], [1, 3, 4]])

    def loss(weights: dict[str, Tensor], x: Tensor, lengths: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,), {"lengths": lengths})[0].square().sum()

    found = vmap(vmap(grad(loss), in_dims=(None, 2, None)), in_dims=(None, 2, 0))(weights, x, lengths)
    for i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        for name, gradient in zip(weights, gradients_alone(layer, x[:, :, i, j], lengths[i]), strict=True):
            torch.testing.assert_close(found[name][i, j], gradient, rtol=1e-10, atol=1e-12)


def test_second_derivatives_of_each_sample(layer):
    x, direction = inputs()
    name, weight = next((n, w.detach()) for n, w in layer.named_parameters() if n.startswith("weight_hh"))

    def gradient(x: Tensor) -> Tensor:
        def loss(weight: Tensor) -> Tensor:
            return functional_call(layer, {name: weight}, (x[:, None],))[0].square().sum()

        return grad(loss)(weight)

    found = vmap(jacrev(gradient), in_dims=1)(x)
    difference = (gradient(x[:, 1] + 1e-6 * direction[:, 1]) - gradient(x[:, 1] - 1e-6 * direction[:, 1])) / 2e-6
    torch.testing.assert_close(torch.einsum("abtj,tj->ab", found[1], direction[:, 1]), difference, rtol=1e-6, atol=1e-8)
    assert found.shape[0] == 3


def test_an_ensemble(layer):
    """Every member has weights of its own."""
    x, _ = inputs()
    members = [{name: weight.detach() * scale for name, weight in layer.named_parameters()} for scale in (0.5, 1.0, 1.5)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,), {"lengths": LENGTHS})[0].square().sum()

    found = vmap(grad(loss), in_dims=(0, None))(stacked, x)
    for i, member in enumerate(members):
        alone = grad(loss)(member, x)
        assert all(torch.equal(found[name][i], alone[name]) for name in alone)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *ONE_STEP])
def test_a_batch_of_gradients_is_the_gradients_one_by_one(kind, recompute):
    layer = (KINDS | ONE_STEP)[kind]()
    layer.recompute = recompute
    x = inputs()[0].requires_grad_()
    output = output_of(layer)(x)
    given, wanted = torch.randn(4, *output.shape, dtype=torch.float64), [x, *layer.parameters()]
    before = fused_runs()["backward"]
    found = torch.autograd.grad(output, wanted, given, is_grads_batched=True, retain_graph=True)
    assert fused_runs()["backward"] - before == getattr(layer, "num_layers", 1) * (1 + (recompute and getattr(layer, "bidirectional", 0)))
    for i, gradient in enumerate(given):
        alone = torch.autograd.grad(output, wanted, gradient, retain_graph=True)
        torch.testing.assert_close([each[i] for each in found], list(alone), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["jacobian", "hessian"])
def test_autograds_own_jacobians_are_vectorized(layer, name, recompute):
    layer.recompute = recompute
    f, (x, _) = output_of(layer), inputs()
    function = f if name == "jacobian" else lambda x: f(x).square().sum()
    found = getattr(torch.autograd.functional, name)(function, x, vectorize=True)
    torch.testing.assert_close(found, {"jacobian": jacrev, "hessian": hessian}[name](function)(x), rtol=1e-10, atol=1e-12)


def test_batches_of_gradients_within_each_other_are_refused(layer):
    x = inputs()[0].requires_grad_()
    output = output_of(layer)(x)

    def inner(gradients: Tensor) -> Tensor:
        return torch.autograd.grad(output, x, gradients, is_grads_batched=True, retain_graph=True)[0]

    with pytest.raises(NotImplementedError, match=r"no batches of gradients .* within each other; torch\.func\.vmap has"):
        _vmap(inner)(torch.ones(2, 3, *output.shape, dtype=torch.float64))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tangent_that_meets_a_backward_is_not_lost(layer, create_graph, recompute):
    x = inputs()[0].requires_grad_()
    layer.recompute = recompute
    output = output_of(layer)(x)
    direction, tangent = torch.randn(2, *output.shape, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(direction, tangent)
        (gradient,) = torch.autograd.grad(output, x, dual, retain_graph=True, create_graph=create_graph)
        found = forward_ad.unpack_dual(gradient).tangent
    (expected,) = torch.autograd.grad(output, x, tangent, retain_graph=True)  # linear in the direction
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_product_with_the_hessian_over_a_recorded_pullback(layer):
    f, (x, d) = output_of(layer), inputs()
    output, pullback = vjp(f, x)
    _, found = jvp(lambda cotangent: pullback(cotangent)[0], (output,), (f(d),))
    torch.testing.assert_close(found, pullback(f(d))[0], rtol=1e-10, atol=1e-12)


def test_gradients_of_each_sample_under_autocast():
    torch.manual_seed(0)
    layer, x = sstkern.LSTM(4, 8), torch.randn(5, 3, 4)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output = functional_call(layer, weights, (x[:, None],))[0]
        assert output.dtype == torch.bfloat16
        return output.float().square().sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vmap(grad(loss), in_dims=(None, 1))(weights, x)
    exact = vmap(grad(lambda w, x: functional_call(layer, w, (x[:, None],))[0].square().sum()), in_dims=(None, 1))(weights, x)
    for name in weights:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], exact[name], rtol=0.05, atol=0.02)


def test_a_wrong_length_of_a_sample_is_told(layer):
    x, _ = inputs()
    with pytest.raises(ValueError, match=r"lengths\[1\] is 4; allowed are 0 to 3"):
        vmap(lambda x, length: layer(x[:, None], lengths=length[None])[0], in_dims=(1, 0))(x, torch.tensor([3, 4, 0]))


def test_forward_mode_of_a_weight(layer):
    x, _ = inputs()
    name, weight = next((n, w) for n, w in layer.named_parameters() if n.startswith("weight_hh"))
    direction = torch.randn_like(weight)

    def of_weight(value: Tensor) -> Tensor:
        return functional_call(layer, {name: value}, (x,), {"lengths": LENGTHS})[0]

    _, tangent = jvp(of_weight, (weight.detach(),), (direction,))
    with torch.no_grad():
        difference = (of_weight(weight + 1e-6 * direction) - of_weight(weight - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


def test_third_derivatives(layer):
    x, _ = inputs()
    assert gradgradcheck(lambda x: torch.autograd.grad(output_of(layer)(x).pow(3).sum(), x, create_graph=True)[0], x.requires_grad_())


def test_a_gradient_penalty_trains_through_the_fused_kernels(layer):
    """Gulrajani et al. 2017: the norm of the critic's gradient is pulled to 1."""
    x, _ = inputs()
    vote = nn.Linear(output_of(layer)(x).size(-1), 1, dtype=torch.float64)
    parameters = [*layer.parameters(), *vote.parameters()]

    def penalty() -> Tensor:
        given = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(vote(output_of(layer)(given)).sum(), given, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    before = fused_runs()
    found = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    after = fused_runs()
    assert after["forward"] > before["forward"]
    assert after["backward"] > before["backward"]
    with sstkern.backend("reference"):
        torch.testing.assert_close(found, torch.autograd.grad(penalty(), parameters, allow_unused=True), rtol=1e-9, atol=1e-12)
    optimizer, first = torch.optim.SGD(parameters, lr=0.05), penalty().item()
    for _ in range(10):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert penalty().item() < first


def test_learning_to_learn(layer):
    """Finn, Abbeel, Levine 2017 (MAML): the gradient of the loss after an inner step, with respect to the weights before it."""
    x, other = inputs()
    weights = {name: weight.detach().requires_grad_() for name, weight in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,), {"lengths": LENGTHS})[0].square().mean()

    def outer(weights: dict[str, Tensor]) -> Tensor:
        gradients = torch.autograd.grad(loss(weights, x), list(weights.values()), create_graph=True)
        inner = {name: weight - 0.5 * gradient for (name, weight), gradient in zip(weights.items(), gradients, strict=True)}
        return loss(inner, other)

    before = fused_runs()["backward"]
    found = torch.autograd.grad(outer(weights), list(weights.values()))
    assert fused_runs()["backward"] - before >= 2
    with sstkern.backend("reference"):
        torch.testing.assert_close(found, torch.autograd.grad(outer(weights), list(weights.values())), rtol=1e-9, atol=1e-12)
    name, weight = next(iter(weights.items()))
    step = torch.zeros_like(weight)
    step[0, 0] = 1e-5
    difference = (outer(weights | {name: weight + step}) - outer(weights | {name: weight - step})) / 2e-5
    assert found[0][0, 0].item() == pytest.approx(difference.item(), rel=1e-5, abs=1e-9)
