"""Names that are there under another name now."""

import warnings


def warn(old: str, new: str) -> None:
    """Tells the caller's caller that `old` is called `new`."""
    warnings.warn(f"{old} is deprecated, and will be removed: it is {new} now", DeprecationWarning, stacklevel=3)
