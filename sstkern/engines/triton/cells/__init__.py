"""Each cell's step and its derivative, on tiles of (units, rows)."""
