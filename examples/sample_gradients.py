"""What each sequence of a batch would have a layer learn: the gradient of every sample, and how much they agree.

python examples/sample_gradients.py [BATCH]
"""

import sys

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import sstkern


def main(batch: int = 16) -> Tensor:
    """The cosine of each sample's gradient with the mean one, (B,)."""
    torch.manual_seed(0)
    layer = sstkern.LSTM(8, 16)
    x, targets, lengths = torch.randn(12, batch, 8), torch.randn(batch, 16), torch.randint(1, 13, (batch,))
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, target: Tensor, length: Tensor) -> Tensor:
        _, (h_n, _) = functional_call(layer, weights, (x[:, None],), {"lengths": length[None]})
        return (h_n[0, 0] - target).square().mean()

    each = vmap(grad(loss), in_dims=(None, 1, 0, 0))(weights, x, targets, lengths)
    flat = torch.cat([gradient.flatten(1) for gradient in each.values()], 1)

    # Their mean is what the fused backward gives at once.
    _, (h_n, _) = layer(x, lengths=lengths)
    (h_n[0] - targets).square().mean(1).mean().backward()
    at_once = torch.cat([parameter.grad.flatten() for parameter in layer.parameters()])
    torch.testing.assert_close(flat.mean(0), at_once, rtol=1e-4, atol=1e-6)

    agreement = torch.cosine_similarity(flat, at_once[None])
    for length, cosine, norm in zip(lengths.tolist(), agreement.tolist(), flat.norm(dim=1).tolist(), strict=True):
        print(f"length {length:2}: norm {norm:.4f}, cosine with the mean gradient {cosine:+.2f}")
    return agreement


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
