from collections.abc import Iterator

import pytest
import torch

from sstkern.bench import machine


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A small case on a busy machine is not slowed by threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    machine.bandwidth.cache_clear()
    yield
    torch.set_num_threads(before)
    machine.bandwidth.cache_clear()
