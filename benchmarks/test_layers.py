"""The layers beside every other engine, under pytest-benchmark: a selection of the cases of `sstkern bench`, built and checked by it."""

import pytest
import torch

from sstkern.bench import peers
from sstkern.bench.cases import Case, grid

SHAPES = [(1, 50, 128), (32, 20, 128), (128, 20, 128), (64, 200, 64)]
CASES = grid(shapes=SHAPES, dtypes=["float32"])


@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
@pytest.mark.parametrize("engine", peers.ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "-"))
def test_layer(benchmark, case: Case, engine: peers.Engine):
    benchmark.group, benchmark.extra_info["engine"] = str(case), engine.name
    problem = peers.Problem.of(case, torch.get_num_threads())
    with peers.ready(problem, [engine]) as (prepared, _, left_out):
        if left_out:
            pytest.skip(left_out[engine.name])
        one = prepared[engine.name]
        with one.mode():
            benchmark(one.run)
    benchmark.extra_info["tokens/s"] = round(case.tokens / benchmark.stats["median"])
