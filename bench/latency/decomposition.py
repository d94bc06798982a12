"""Where a network's time goes, layer by layer, and why a smaller one is not as much faster as its MACs say.

A layer here is a module without modules inside.  Its time is taken by hooks around it, so the sum is that of a network
whose layers wait for each other; shares are of that.  What happens between the layers (additions, reshapes, the calls
themselves) is ``rest``.  Networks that are compared take turns, pass by pass, backwards every other time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.latency.roofline import Roofline

REST = "rest"
# operations that move nothing and start nothing
_VIEW_NAMES = (
    "view _unsafe_view t transpose permute reshape expand alias detach unsqueeze squeeze slice select as_strided "
    "flatten split unbind"
)
_VIEWS = frozenset(_VIEW_NAMES.split())
MULTIPLES = (32, 16, 8)
_REPEATS, _MOST_PASSES, _LEAST_SECONDS = 7, 50, 0.5


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that are started, by the layer that is running."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer, self.counts = REST, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func._overloadpacket.__name__).removesuffix("_") not in _VIEWS:
            self.counts[self.layer] += 1
        return func(*args, **(kwargs or {}))


class _Clock:
    """Reads times around layers: of the processor, or events of the GPU, which are read at the end."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        if not self.cuda:
            return float(end - begin) * 1e-9
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


def measured(model: nn.Module, x: Tensor, macs: Mapping[str, int], peak: Roofline) -> list[dict[str, Any]]:
    """The layers of ``model`` on the batch ``x``, in the order in which they run, and the rest at the end.

    ``macs`` are those of one image by module.  Each layer has: ``ms`` (median), ``share`` (%) of the whole, ``macs`` of
    the batch, ``bytes`` (read and written once each), ``intensity`` (FLOP a byte), ``gflops_per_s``, ``of_roofline``
    (%), ``launches``, ``inputs`` and ``outputs`` (channels) and ``multiple`` (the largest of 32, 16 and 8 that divides
    both, else 1).
    """
    return together({"": (model, x, macs)}, peak)[""]


def together(
    networks: Mapping[str, tuple[nn.Module, Tensor, Mapping[str, int]]], peak: Roofline
) -> dict[str, list[dict[str, Any]]]:
    """The layers of several networks, as :func:`measured` has them, timed in turns; each with its batch and MACs."""
    ready = {
        name: _Passes(model, x, {m: n for n, m in model.named_modules() if not list(m.children()) and n})
        for name, (model, x, _) in networks.items()
    }
    found = {}
    with torch.inference_mode():
        _in_turns(list(ready.values()))
        for name, (model, x, macs) in networks.items():
            leaves, shapes = ready[name].leaves, dict[str, dict[str, Any]]()
            with _noted(leaves, shapes), _Launches() as launches, _entered(leaves, launches):
                model(x)
            found[name] = _described(ready[name].taken, shapes, launches.counts, macs, len(x), peak)
    return found


def _described(
    taken: Mapping[str, Sequence[float]],
    shapes: Mapping[str, Mapping[str, Any]],
    launches: Mapping[str, int],
    macs: Mapping[str, int],
    batch: int,
    peak: Roofline,
) -> list[dict[str, Any]]:
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    rest = medians.pop(REST)
    whole = rest + sum(medians.values())
    found = []
    for name, shape in shapes.items():
        seconds, count = medians[name], macs.get(name, 0) * batch
        # a layer that does nothing may take no time that events can tell
        flops = 2.0 * count / seconds if count and seconds else 0.0
        intensity = 2.0 * count / shape["bytes"]
        found.append(
            {
                "layer": name,
                **shape,
                "ms": 1e3 * seconds,
                "share": 100.0 * seconds / whole,
                "macs": count,
                "intensity": intensity,
                "gflops_per_s": flops / 1e9,
                "of_roofline": 100.0 * flops / peak.at(intensity) if flops else None,
                "launches": launches[name],
            }
        )
    found.append(
        {"layer": REST, "ms": 1e3 * rest, "share": 100.0 * rest / whole, "macs": 0, "launches": launches[REST]}
    )
    return found


@contextmanager
def _noted(leaves: Mapping[nn.Module, str], shapes: dict[str, dict[str, Any]]) -> Iterator[None]:
    """While open, notes what each layer reads and writes."""

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = leaves[module]
        tensors = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *module.parameters()))
        entry = {"kind": type(module).__name__, "bytes": moved, **_widths(module)}
        if name in shapes:  # a module that is used again
            entry["bytes"] += shapes[name]["bytes"]
        shapes[name] = entry

    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widths(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, nn.Conv2d):
        inputs, outputs = module.in_channels, module.out_channels
    elif isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
    else:
        return {}
    return {"inputs": inputs, "outputs": outputs, "multiple": multiple(inputs, outputs)}


def multiple(*widths: int) -> int:
    """The largest of 32, 16 and 8 that divides all widths but three (the colours of an image), else 1."""
    counted = [width for width in widths if width != 3]
    return next((m for m in MULTIPLES if all(width % m == 0 for width in counted)), 1)


@contextmanager
def _entered(leaves: Mapping[nn.Module, str], launches: _Launches) -> Iterator[None]:
    def enter(module: nn.Module, inputs: Any) -> None:
        launches.layer = leaves[module]

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        launches.layer = REST

    handles = [h for m in leaves for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Passes:
    """Passes of one network: seconds of each layer and of the rest, ``taken`` by hooks."""

    def __init__(self, model: nn.Module, x: Tensor, leaves: Mapping[nn.Module, str]) -> None:
        self.model, self.x, self.leaves = model, x, leaves
        self.taken: dict[str, list[float]] = {REST: []}
        self._clock = _Clock(x.is_cuda)
        self._marks: list[tuple[str, Any, Any]] = []
        self._begun: dict[nn.Module, Any] = {}

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._begun[module] = self._clock.now()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._marks.append((self.leaves[module], self._begun[module], self._clock.now()))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While open, the layers are timed; one pass warms up."""
        handles = [
            handle
            for module in self.leaves
            for handle in (module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave))
        ]
        try:
            self.model(self.x)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def once(self) -> None:
        """One pass."""
        self._marks.clear()
        begin = self._clock.now()
        self.model(self.x)
        total = self._clock.seconds(begin, self._clock.now())
        sums: dict[str, float] = {}
        for name, first, last in self._marks:
            sums[name] = sums.get(name, 0.0) + self._clock.seconds(first, last)
        for name, seconds in sums.items():
            self.taken.setdefault(name, []).append(seconds)
        self.taken[REST].append(max(0.0, total - sum(sums.values())))


def _in_turns(networks: Sequence[_Passes]) -> None:
    """Several passes of each network, the order reversed every other time."""
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(network.hooked())
        started, least = time.monotonic(), _LEAST_SECONDS * len(networks)
        for number in range(_MOST_PASSES):
            for network in networks if number % 2 == 0 else reversed(networks):
                network.once()
            if number + 1 >= _REPEATS and time.monotonic() - started >= least:
                break


# --------------------------------------------------------------------------------------------------------------------
# Why it is not faster


@dataclass(frozen=True)
class Why:
    """The time (ms) that a pruned network takes beyond its share of the MACs, by cause; the causes add up.

    ``expected`` is the dense network's time times the share of MACs that is left.  ``uncounted``: layers that MACs do
    not count (activations, pooling) shrank less; ``allocation``: MACs went where the dense network was fast, and stayed
    where it was slow; ``efficiency``: the layers left compute fewer FLOP a second than the dense network's did;
    ``rest``: what happens between the layers.
    """

    dense: float
    pruned: float
    expected: float
    uncounted: float
    allocation: float
    efficiency: float
    rest: float
    slowest: tuple[tuple[str, float], ...] = ()


def why(dense: Sequence[Mapping[str, Any]], pruned: Sequence[Mapping[str, Any]]) -> Why:
    """The gap between a pruned network's time and the expected one, from the layers of both, matched by name.

    With t and m a layer's time and MACs, T and M the networks', r = M'/M:  T' - r T = sum of
    t' - r t (a layer without MACs), t (m'/m - r) + (t' - t m'/m) (allocation + efficiency), and the rest's t' - r t.
    """
    first, second = ({layer["layer"]: layer for layer in layers} for layers in (dense, pruned))
    share = sum(layer["macs"] for layer in pruned) / sum(layer["macs"] for layer in dense)
    found = {"uncounted": 0.0, "allocation": 0.0, "efficiency": 0.0, "rest": 0.0}
    losses: dict[str, float] = {}
    for name in {**first, **second}:
        before = first[name]["ms"] if name in first else 0.0
        after = second[name]["ms"] if name in second else 0.0
        macs = first[name]["macs"] if name in first else 0
        left = second[name]["macs"] if name in second else 0
        if name == REST:
            found["rest"] += after - share * before
        elif macs:
            found["allocation"] += before * (left / macs - share)
            losses[name] = after - before * left / macs
            found["efficiency"] += losses[name]
        else:
            found["uncounted"] += after - share * before
    totals = [sum(layer["ms"] for layer in layers) for layers in (dense, pruned)]
    slowest = sorted(losses.items(), key=lambda item: -item[1])[:3]
    return Why(totals[0], totals[1], share * totals[0], **found, slowest=tuple(pair for pair in slowest if pair[1] > 0))


def paragraph(name: str, found: Why, dense: Sequence[Mapping[str, Any]], pruned: Sequence[Mapping[str, Any]]) -> str:
    """One paragraph that says where the saving went."""
    gap = found.pruned - found.expected
    layers = {layer["layer"]: layer for layer in pruned}
    lines = [
        f"{name}: layer by layer {found.dense:.1f} ms became {found.pruned:.1f} ms "
        f"({found.dense / found.pruned:.2f}x); in proportion to the MACs it would be {found.expected:.1f} ms "
        f"({found.dense / found.expected:.2f}x)."
    ]
    causes = [
        (found.efficiency, "layers that compute fewer FLOP a second than in the dense network"),
        (found.uncounted, "activations, pooling and other layers that MACs do not count"),
        (found.allocation, "MACs that stayed in layers where the dense network is slow"),
        (found.rest, "what happens between the layers"),
    ]
    said = [
        f"{ms:+.1f} ms by {text}" for ms, text in sorted(causes, key=lambda cause: -abs(cause[0])) if abs(ms) >= 0.05
    ]
    if said:
        lines.append(f"The difference of {gap:+.1f} ms: {'; '.join(said)}.")
    if found.slowest:
        named = []
        for layer, ms in found.slowest:
            here = layers[layer]
            odd = f", {here['inputs']} -> {here['outputs']} channels" if "inputs" in here else ""
            roof = f", {here['of_roofline']:.0f} % of the roofline" if here.get("of_roofline") else ""
            named.append(f"{layer} ({ms:+.1f} ms{odd}{roof})")
        lines.append(f"Most is lost in {', '.join(named)}.")
    odd_widths = [layer for layer in pruned if layer.get("multiple") == 1]
    counted = [layer for layer in pruned if "multiple" in layer]
    if odd_widths:
        share = sum(layer["ms"] for layer in odd_widths) / found.pruned
        lines.append(
            f"{len(odd_widths)} of {len(counted)} layers with weights have widths that are no multiple of 8; they take "
            f"{100 * share:.0f} % of the time."
        )
    launches = [sum(layer["launches"] for layer in layers_) for layers_ in (dense, pruned)]
    lines.append(f"Operations started: {launches[0]} dense, {launches[1]} pruned.")
    return " ".join(lines)
