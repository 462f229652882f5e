"""Triton's interpreter, quick enough for tests."""

from collections.abc import Callable

from triton.runtime import interpreter


def patch_language_once() -> None:
    """For the rest of the process: Triton repeats this at every call of a function, most of the time that a small kernel takes."""
    interpreter._patch_lang = _once_a_module(interpreter._patch_lang)


def _once_a_module(patch_lang: Callable) -> Callable:
    patched = set()

    def patch(function) -> interpreter._LangPatchScope:
        if function.__module__ not in patched:
            patched.add(function.__module__)
            patch_lang(function)
        return interpreter._LangPatchScope()  # nothing to undo

    return patch
