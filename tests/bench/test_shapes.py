import pytest

from sstkern.bench.shapes import parse_shape


def test_shapes_are_read():
    assert parse_shape("32, 20,128") == (32, 20, 128)
    for text in ("32,20", "32,20,0", "a,b,c", "1,2,3,4", "1,-2,3"):
        with pytest.raises(ValueError, match=f"expected three positive integers B,T,H, as in 32,20,128, got '{text}'"):
            parse_shape(text)
