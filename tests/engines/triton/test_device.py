"""What torch's switches for cuDNN's recurrent layers ask of the kernels."""

from collections.abc import Iterator

import pytest
import torch

from sstkern.engines.triton import device
from sstkern.engines.triton.device import Device
from sstkern.engines.triton.launch import Card


@pytest.fixture
def cudnn() -> Iterator[object]:
    yield torch.backends.cudnn
    torch.backends.cudnn.allow_tf32 = True  # sets the older switch and the newer ones: torch.export refuses to start where they differ
    assert torch.backends.cudnn.allow_tf32


def precision(dtype: torch.dtype, target: str = "cuda", has_tf32: bool = True) -> str:
    return Device(Card(132, 232448, True), target, print, device._cudnn_allows_tf32, has_tf32).precision(dtype)


def test_tf32_is_allowed_as_cudnn_allows_it(cudnn):
    assert precision(torch.float32) == "tf32"
    cudnn.allow_tf32 = False
    assert precision(torch.float32) == "tf32x3"
    cudnn.allow_tf32 = True
    cudnn.rnn.fp32_precision = "ieee"
    assert precision(torch.float32) == "tf32x3"


def test_a_switch_for_convolutions_alone_is_no_error(cudnn):
    cudnn.allow_tf32 = False
    cudnn.conv.fp32_precision = "tf32"
    assert precision(torch.float32) == "tf32x3"


def test_amd(cudnn):
    assert precision(torch.float32, "hip") == "tf32"
    assert precision(torch.float32, "hip", has_tf32=False) == "ieee"
    cudnn.rnn.fp32_precision = "ieee"
    assert precision(torch.float32, "hip") == "ieee"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_have_no_switch(dtype):
    assert precision(dtype) == "ieee"
