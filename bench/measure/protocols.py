"""Both of ImageNet's evaluation protocols beside each other, a metric each: the sign of a change can depend on them.

``short256`` resizes the shorter side to 256, ``squash256`` the whole image to 256x256; both take the centre crop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.measure import accuracy
from bench.metrics import Metric
from bench.steps import Kind, Step, make_step
from bench.store import Result

PROTOCOLS = {"short256": "shorter side 256", "squash256": "256x256, aspect not kept"}
METRICS = tuple(
    Metric(
        f"top{k}_{what}_{name}",
        f"top-{k}{' change' if what == 'change' else ''}, {name}",
        "pp" if what == "change" else "%",
        2,
        (
            f"Top-{k} accuracy minus that of the dense network, both on test images resized by {name} ({how})."
            if what == "change"
            else f"Top-{k} accuracy on test images resized by {name} ({how})."
        ),
        "higher",
        signed=what == "change",
        shown=k == 1,
    )
    for k in (1, 5)
    for what in ("acc", "change")
    for name, how in PROTOCOLS.items()
)


@dataclass(frozen=True)
class Protocol:
    """``name`` is one of :data:`PROTOCOLS` and goes behind the metrics."""

    name: str


def run_under(context: object, parents: list[Result], params: Protocol) -> Result:
    """Accuracy under a protocol, and its change from the references.

    Parents: evaluations (first half) and their references (second half), seed by seed.  A network that serves every
    seed comes once.  No change of the references themselves is told.
    """
    half = len(parents) // 2
    runs, references = ([parent.arrays["logits"] for parent in part] for part in (parents[:half], parents[half:]))
    first = parents[0]
    images = first.arrays["labels"], first.facts.get("of"), first.arrays.get("units")
    found = accuracy.summary(runs, *images)
    if any(not run.equal(reference) for run, reference in zip(runs, references, strict=True)):
        compared = accuracy.compare(runs, references, *images)
        found += [record for record in compared if record.metric.endswith("_change")]
    return Result(records=[replace(record, metric=f"{record.metric}_{params.name}") for record in found])


def under(runs: list[Step], references: list[Step], name: str) -> Step:
    """The step that gives accuracy and change under the protocol by which all these evaluations were made."""
    parents = [*runs, *references]
    label = f"under {name}({runs[0].name}, {len(runs)} networks)"
    return make_step(Kind.COMPARE, label, run_under, Protocol(name), parents, device=runs[0].device)
