"""The outputs of a network's modules while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


@contextlib.contextmanager
def captured(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """While open, a list that holds the latest output of the module ``name`` (a copy: activations may be in place)."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[:] = [output.clone()]

    handle = model.get_submodule(name).register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
