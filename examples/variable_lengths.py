"""Sequences of very different lengths: ours by `lengths`, torch.nn's packed and padded; the same numbers, the times in turns.

python examples/variable_lengths.py [REPEATS]
"""

import sys
import time
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sstkern

LONGEST, BATCH, FEATURES, UNITS = 200, 64, 64, 64


def main(repeats: int = 20) -> dict[str, float]:
    """Milliseconds of a training step, by the way it is done."""
    torch.manual_seed(0)
    lengths = torch.randint(1, LONGEST + 1, (BATCH,))
    lengths[: BATCH // 2] //= 10  # half of the sequences are short
    lengths.clamp_(min=1)
    x = torch.randn(LONGEST, BATCH, FEATURES)
    ours, theirs = sstkern.GRU(FEATURES, UNITS), nn.GRU(FEATURES, UNITS)
    theirs.load_state_dict(ours.state_dict())

    def packed(x: Tensor) -> Tensor:
        output, _ = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=LONGEST)[0]

    ways = {
        "sstkern with lengths": (ours, lambda x: ours(x, lengths=lengths)[0]),
        "torch.nn packed": (theirs, packed),
        "torch.nn padded, which runs over the padding": (theirs, lambda x: theirs(x)[0]),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, (layer, run) in ways.items():
            layer.zero_grad()
            began = time.perf_counter()
            run(x).sum().backward()
            times[name].append(1e3 * (time.perf_counter() - began))
    with torch.no_grad():
        torch.testing.assert_close(ours(x, lengths=lengths)[0], packed(x), rtol=1e-4, atol=1e-5)
    print(f"{BATCH} sequences of 1 to {LONGEST} steps, {100 * lengths.sum().item() / x[..., 0].numel():.0f}% of the padded batch is valid")
    found = {name: median(of_way[1:]) for name, of_way in times.items()}
    for name, milliseconds in found.items():
        print(f"{milliseconds:8.2f} ms  {name}")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
