"""A training step's forward and backward passes as one CUDA graph, which is captured once and replayed.

On a GPU, small networks on small images wait for Python: ResNet-56 on 32x32 starts hundreds of kernels of microseconds
each.  A replay starts them all at once.  The kernels are the same ones, so is what they compute.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from bench.processes import launched

# what runs the passes: the graph's replay
Replay = Callable[[], None]
# passes that are captured before they ever ran would capture what is done the first time alone, too
_WARM_UP = 3
# modules of these packages do the same in every pass; another's may count its calls, or draw by Python's own generator
_SAME_EVERY_TIME = ("torch", "torchvision", "mmengine", "bench")


def _captured(passes: Callable[[], None]) -> Replay:
    """``passes`` as a CUDA graph, after a few runs on a stream of their own."""
    before, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            passes()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            passes()
    except RuntimeError:  # a capture that fails does not give the stream back
        torch.cuda.set_stream(before)
        torch.cuda.synchronize()
        raise
    return graph.replay


class GraphedStep:
    """``model.train_step`` of batches that are as large as the first one; others take the ordinary way.

    ``capture`` makes a replay of the passes, whatever the device.
    """

    def __init__(self, model: BaseModel, capture: Callable[[Callable[[], None]], Replay]) -> None:
        self.model, self.capture = model, capture
        self.failed: str | None = None
        self._replay: Replay | None = None
        self._inputs: list[Tensor] = []
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._names: list[str] = []
        self._values: Tensor | None = None

    def __call__(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One step of the optimiser; the losses by name, as mmengine logs them."""
        inputs = [part.contiguous(memory_format=_layout(part)) for part in self.model.data_preprocessor(data, True)]
        if self._replay is None and self.failed is None:
            self._prepare(inputs, optim_wrapper)
        if self._replay is None or [part.shape for part in inputs] != [part.shape for part in self._inputs]:
            optim_wrapper.zero_grad()  # the graph's gradients stay as they are
            found: dict[str, Tensor] = type(self.model).train_step(self.model, data, optim_wrapper)
            return found
        for held, part in zip(self._inputs, inputs, strict=True):
            held.copy_(part)
        self._replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        optim_wrapper.step()
        assert self._values is not None
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))

    def _prepare(self, inputs: list[Tensor], optim_wrapper: OptimWrapper) -> None:
        """Captures the passes.  Running statistics and generators are afterwards as they were before."""
        self._inputs = [part.clone() for part in inputs]
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        before = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        device = inputs[0].device

        def passes() -> None:
            optim_wrapper.zero_grad()  # a gradient that is not there is written, not added to
            loss, values = self.model.parse_losses(self.model(*self._inputs, mode="loss"))
            self._names = list(values)
            self._values = torch.stack([value.detach() for value in values.values()])
            loss.backward()

        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                self._replay = self.capture(passes)
            except RuntimeError as error:  # a network that waits for the device, or no memory for a second copy
                # the end of a failed capture raises too, with less to say
                self.failed = str(error.__context__ or error).strip().partition("\n")[0][:200]
                print(f"no CUDA graph of the training ({self.failed}): each pass is started", file=sys.stderr)
            self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _layout(part: Tensor) -> torch.memory_format:
    """Channels-last where a batch of images lies so."""
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not part.is_contiguous() else torch.contiguous_format


def can_be_graphed(model: BaseModel, device: str, amp: bool) -> bool:
    """Whether ``model`` does the same in every pass on one GPU (``static``), and so do all of its modules.

    Scaled losses of mixed precision look at their values, processes wait for one another: neither is captured.
    """
    if not device.startswith("cuda") or amp or launched() > 1 or not getattr(model, "static", False):
        return False
    return all(type(module).__module__.partition(".")[0] in _SAME_EVERY_TIME for module in model.modules())


@contextlib.contextmanager
def graphed(model: BaseModel, device: str, amp: bool) -> Iterator[None]:
    """Within, the training steps of ``model`` replay a graph, where one is possible."""
    if not can_be_graphed(model, device, amp):
        yield
        return
    model.train_step = GraphedStep(model, _captured)
    try:
        yield
    finally:
        del model.train_step
