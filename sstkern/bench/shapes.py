"""Shapes as the command line has them, without torch: wrong ones are refused at once."""

Shape = tuple[int, int, int]
"""B sequences, T time steps, H units, as many as input features."""
WHOLE = 64
"""Hidden sizes that are a multiple of it have whole tiles with every instruction set."""


def parse_shape(text: str) -> Shape:
    """The shape that "B,T,H" says."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"shape: expected three positive integers B,T,H, as in 32,20,128, got '{text}'")
    batch, steps, size = map(int, numbers)
    return batch, steps, size
