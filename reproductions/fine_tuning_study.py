"""What brings a pruned network back: a study of ours on Channel Pruning's ResNet-56, on training images only.

LASSO's network at 2x is tuned briefly in many ways, all alike but for one choice: the peak of the learning rate, the
shape of the schedule, the weight decay, distillation from the dense network.  Each is measured on training images that
neither the tuning nor the pruning saw, with batch norm's statistics as the tuning left them and renewed.  What is found
here is what ``channel_pruning.py`` tunes with; the test images have no say.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional as F

from bench.chains import dense, gmacs
from bench.cli import main
from bench.data.images import ImageSet, MemorySplit
from bench.data.stream import ImageStream
from bench.errors import UserError
from bench.measure import accuracy
from bench.measure.statistics import interval_of_mean
from bench.metrics import Metric
from bench.models.checkpoint import checkpoint, network, takes_channels_last
from bench.models.recipe import Recipe
from bench.protocols import protocol
from bench.pruning.peers import renew
from bench.rows import STUDY, Chain, Paper, Row, Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result
from bench.train.distillation import Distillation, distil
from bench.train.fit import fit
from bench.train.schedule import Schedule
from bench.zoo import resnet56
from reproductions.channel_pruning import PROTOCOLS, RESNET56_LASSO, SOFT

IMAGES, HELD_OUT, RENEWING = 10_000, 5000, 2560

DEVIATIONS = [
    "A study of ours: no paper prints these values. The network is LASSO's of Channel Pruning's Table 8 (ResNet-56, "
    "half of the inner channels); all is measured on training images.",
    f"The training images are put in the order from which the pruning drew its calibration images: tuned is on the "
    f"first {IMAGES:,}, measured on the last {HELD_OUT:,}, which no calibration image is among.",
    "The dense network's given weights were trained on all of these images and are right on all of the last ones too: "
    "the study leans towards what stays near them (low rates, distillation), and a higher rate that does as well does "
    "so in spite of that.",
    "Two epochs in batches of 128, 158 steps: a tenth of what the choice is for. A longer training bears higher rates "
    "rather than lower ones.",
    f"Renewed: batch norm's statistics taken anew behind the tuning, on {RENEWING:,} images without augmentation. "
    "In front of a tuning it would change nothing, because training normalises each batch by itself.",
]

ON = "held-out images"
METRICS = (
    Metric(
        "held_out_acc",
        "held out",
        "%",
        2,
        "Share of held-out training images that are labelled right.",
        "higher",
        of=ON,
    ),
    Metric(
        "held_out_change",
        "held-out change",
        "pp",
        2,
        "Share of held-out training images labelled right, minus that of the dense network.",
        "higher",
        signed=True,
        of=ON,
        panel=1,
    ),
    Metric("held_out_loss", "held-out loss", "nats", 4, "Cross-entropy on held-out training images.", "lower", of=ON),
    Metric(
        "held_out_kl",
        "held-out KL",
        "nats",
        4,
        "KL divergence of the outputs from the dense network's on held-out training images.",
        "lower",
        of=ON,
    ),
    Metric(
        "held_out_renewed_change",
        "held-out change, renewed",
        "pp",
        2,
        "The held-out change with batch norm's statistics renewed behind the tuning.",
        "higher",
        signed=True,
        of=ON,
    ),
)


# --------------------------------------------------------------------------------------------------------------------
# Steps


@dataclass(frozen=True)
class Parts:
    """The training images in the order of ``seed``: the first ``images`` are tuned on, the last ``held_out`` not."""

    images: int
    held_out: int
    seed: int

    def of(self, data: ImageSet) -> tuple[MemorySplit, MemorySplit]:
        """The images that are tuned on, and those held out.  Raises :class:`UserError` where they are too few."""
        split = data.train
        if not isinstance(split, MemorySplit) or len(split) < self.images + self.held_out:
            raise UserError(
                f"the study of fine-tuning needs {self.images + self.held_out:,} training images in memory: run it "
                "with --scale cifar10"
            )
        # the order of bench.pruning.steps.calibration_images, which takes the first
        places = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return part(split, places[: self.images]), part(split, places[-self.held_out :])


def part(split: MemorySplit, places: Sequence[int]) -> MemorySplit:
    """The images of ``split`` at ``places``, with its augmentation and normalisation."""
    other = copy.copy(split)
    index = torch.tensor(places)
    other.images, other.labels = split.images[index], split.labels[index]
    return other


@dataclass(frozen=True)
class Trial:
    """Fine-tuning of the first parent's network on the first of ``parts``; the second parent's may be its teacher."""

    schedule: Schedule
    distillation: Distillation | None
    parts: Parts


@dataclass(frozen=True)
class HeldOut:
    """A network is measured on the images held out of ``parts``; its statistics on the first ``renewing``, if any."""

    parts: Parts
    renewing: int = 0


@dataclass(frozen=True)
class Judging:
    """No parameters: evaluations of a network, of its renewed form, and of the dense network say everything."""


def run_tried(context: Context, parents: list[Result], params: Trial) -> Result:
    """The network, tuned."""
    model, recipe = network(parents[0])
    images, _ = params.parts.of(context.data())
    seed, work, device = params.parts.seed, context.work, context.device
    if params.distillation is None:
        history = fit(model, images, params.schedule, seed, work, device, context.label, progress=context.progress)
    else:
        teacher, _ = network(parents[1])
        history = distil(
            model,
            teacher,
            images,
            params.schedule,
            params.distillation,
            seed,
            work,
            device,
            context.label,
            progress=context.progress,
        )
    return checkpoint(model, recipe, facts={"images": len(images), "history": history})


def run_held_out(context: Context, parents: list[Result], params: HeldOut) -> Result:
    """Logits of the held-out images."""
    model, recipe = network(parents[0])
    images, held_out = params.parts.of(context.data())
    if params.renewing:
        places = list(range(params.renewing))
        renew(model.to(context.device), ImageStream(images, places, 128, progress=context.progress), context)
    outputs = accuracy.logits(
        model.cpu(),
        held_out,
        context.device,
        progress=context.progress,
        channels_last=takes_channels_last(recipe),
    )
    return Result(arrays={"logits": outputs, "labels": held_out.labels})


def run_judged(context: Context, parents: list[Result], params: Judging) -> Result:
    """Accuracy and loss of a network on the held-out images, and its changes from the dense network, with intervals."""
    tuned, renewed, reference = (parent.arrays["logits"] for parent in parents)
    labels = parents[0].arrays["labels"]
    losses = F.cross_entropy(tuned.double(), labels, reduction="none")
    mean, low, high = interval_of_mean(losses[None])
    against = accuracy.compare([tuned], [reference], labels)
    return Result(
        records=[
            _renamed(accuracy.records(tuned, labels, None), "top1_acc", "held_out_acc"),
            _renamed(against, "top1_change", "held_out_change"),
            Record("held_out_loss", mean, "nats", low, high, n=len(labels)),
            _renamed(against, "kl", "held_out_kl"),
            _renamed(accuracy.compare([renewed], [reference], labels), "top1_change", "held_out_renewed_change"),
        ]
    )


def _renamed(records: list[Record], old: str, new: str) -> Record:
    (record,) = (record for record in records if record.metric == old)
    return replace(record, metric=new)


# --------------------------------------------------------------------------------------------------------------------
# Rows

TABLE = "What brings a pruned network back (ResNet-56 at 2x, training images only)"
BASE = Schedule(epochs=2, lr=0.01, batch=128, weight_decay=1e-4, shape="cosine")
# the row's name, its schedule and its teacher's part
TRIALS: list[tuple[str, Schedule, Distillation | None]] = [
    *((f"rate {rate:g}", replace(BASE, lr=rate), None) for rate in (0.001, 0.003, 0.01, 0.03)),
    *((f"rate {rate:g}, distilled", replace(BASE, lr=rate), SOFT) for rate in (0.003, 0.01, 0.03)),
    ("rate 0.01, distilled, not softened, no labels", BASE, Distillation(1.0, 1.0)),
    ("rate 0.01, constant", replace(BASE, shape="constant"), None),
    ("rate 0.01, weight decay 5e-4", replace(BASE, weight_decay=5e-4), None),
]


def chain(
    setting: Setting, recipe: Recipe, *, name: str, schedule: Schedule | None, distillation: Distillation | None = None
) -> Chain:
    """LASSO's network tuned (or not) in the way ``name``, measured on the held-out images beside the dense one."""
    seed = setting.seeds[0]
    parts = Parts(IMAGES, HELD_OUT, seed)
    start = dense(setting, recipe, seed, protocol(PROTOCOLS, setting, recipe))
    step = RESNET56_LASSO(setting, recipe, start, seed)
    if schedule is not None:
        params = Trial(schedule, distillation, parts)
        passes = 3.0 if distillation is None else 4.0
        step = make_step(
            Kind.TRAIN,
            f"tried({name})",
            run_tried,
            params,
            [step, start],
            data=setting.data,
            device=setting.device,
            work=gmacs(recipe, IMAGES, passes * schedule.epochs),
        )
    runs = [
        _held_out(setting, recipe, step, HeldOut(parts)),
        _held_out(setting, recipe, step, HeldOut(parts, RENEWING)),
        _held_out(setting, recipe, start, HeldOut(parts)),
    ]
    judged = make_step(Kind.COMPARE, f"judged({step.name})", run_judged, Judging(), runs, device=setting.device)
    return Chain([step], [judged])


def _held_out(setting: Setting, recipe: Recipe, step: Step, params: HeldOut) -> Step:
    return make_step(
        Kind.EVALUATE,
        f"{'renewed and ' if params.renewing else ''}held out({step.name})",
        run_held_out,
        params,
        [step],
        data=setting.data,
        device=setting.device,
        work=gmacs(recipe, params.parts.held_out + params.renewing, 1.0),
    )


def paper() -> Paper:
    """The study as the harness sees it."""
    ways = [("not tuned", None, None), *TRIALS]
    rows = [
        Row(
            TABLE,
            name,
            "cifar10",
            dense=resnet56,
            chain=partial(chain, name=name, schedule=schedule, distillation=distillation),
            seeds=(0,),
            scales=("cifar10",),
            ours=True,
        )
        for name, schedule, distillation in ways
    ]
    title = "What brings a pruned network back"
    answers = [(TABLE, name) for name in ("not tuned", "rate 0.003", "rate 0.01", "rate 0.03", "rate 0.01, distilled")]
    return Paper("fine_tuning_study", title, STUDY, rows, DEVIATIONS, METRICS, answers)


if __name__ == "__main__":
    raise SystemExit(main(["run", "fine_tuning_study", *sys.argv[1:]]))
