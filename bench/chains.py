"""Chains of steps that papers share: train, evaluate, compare with the dense network, say what a choice is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from bench import zoo
from bench.measure import steps as measuring
from bench.measure.protocols import under
from bench.models.edits import Edit
from bench.models.recipe import Recipe
from bench.protocols import Protocol
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import Chain, Setting
from bench.steps import Kind, Step, make_step
from bench.train import steps as train
from bench.train.distillation import Distillation
from bench.train.schedule import Schedule

# the dense network of a seed, and a pruned one made from it
Dense = Callable[[Setting, Recipe, int], Step]
Prune = Callable[[Setting, Recipe, Step, int], Step]
Measure = Callable[[Setting, Recipe, Step, int], Step]


def gmacs(recipe: Recipe, images: int, passes: float) -> float:
    """Expected work of ``passes`` forward passes over ``images`` images, in GMACs."""
    return pruning.dense_macs(recipe) / 1e9 * images * passes


def filters(recipe: Recipe, names: Iterable[str]) -> dict[str, int]:
    """How many filters these convolutions of the network have, by module name."""
    model = recipe.build("meta" if ":" not in recipe.builder else "cpu")
    return {name: surgery.convolution(model, name).out_channels for name in names}


def shape_of(dense: Recipe, keep: Mapping[str, int]) -> Recipe:
    """The recipe of the network with these widths (``:in`` marks a sampler), first channels kept."""
    samplers = {name.removesuffix(":in"): list(range(count)) for name, count in keep.items() if name.endswith(":in")}
    widths = {name: count for name, count in keep.items() if not name.endswith(":in")}
    return dense.sampled(samplers).removed(widths)


def dense(setting: Setting, recipe: Recipe, seed: int, how: Protocol | None = None) -> Step:
    """The dense network: the user's weights, torchvision's, or trained here, by the paper's protocol if it has its own.

    Without one by :data:`bench.zoo.TRAINING`.
    """
    schedule = zoo.training(setting.scale, recipe) if how is None else how.dense
    if setting.weights is not None or schedule is None:
        return loaded(setting, recipe)
    return trained(setting, recipe, None, schedule, seed, "dense")


def loaded(setting: Setting, recipe: Recipe) -> Step:
    """The dense network with the user's weights, or torchvision's."""
    params = train.Loading(recipe, setting.weights)
    return make_step(Kind.LOAD, f"dense({recipe.builder})", train.run_loaded, params, device=setting.device)


def trained(setting: Setting, recipe: Recipe, parent: Step | None, schedule: Schedule, seed: int, label: str) -> Step:
    """Training from fresh weights, or fine-tuning of ``parent``.

    On ImageNet fresh weights see crops of random size and shape, as in torchvision's references.
    """
    params = train.Training(replace(schedule, amp=setting.amp), seed, recipe if parent is None else None)
    work = gmacs(recipe, setting.train_images, 3.0 * schedule.epochs)
    name = f"{label}({recipe.builder}, seed {seed})" if parent is None else f"{label}({parent.name})"
    parents = () if parent is None else (parent,)
    run = train.run_scratch if parent is None and setting.scale == "imagenet" else train.run_trained
    return make_step(Kind.TRAIN, name, run, params, parents, data=setting.data, device=setting.device, work=work)


def edited(setting: Setting, parent: Step, edit: Edit, seed: int) -> Step:
    """``parent`` with an edit; what is new in it has weights from ``seed``."""
    return make_step(Kind.PRUNE, "edited", train.run_edited, train.Editing(edit, seed), [parent], device=setting.device)


def halved(setting: Setting, parent: Step) -> Step:
    """``parent``'s network with its weights rounded to half precision, so that it can be kept in half the space."""
    name, device = f"half precision({parent.name})", setting.device
    return make_step(Kind.PRUNE, name, train.run_halved, train.Halving(), [parent], device=device)


def pruned_by(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    seed: int,
    method: Method,
    keep: Mapping[str, int],
    images: int,
    *,
    alone: bool = True,
) -> Step:
    """One walk through ``parent``'s network, ``keep`` filters left by module name.

    Ten positions of each of ``images`` training images, spread evenly over the classes, are looked at; with ``alone``
    in the layers that are named only.
    """
    images, sampling = min(images, setting.train_images), Sampling(positions=10, seed=seed)
    params = pruning.Pruning(method, pruning.Fixed(keep), sampling, images, balanced=True, alone=alone)
    return pruning.pruned(parent, None, params, setting.data, gmacs(recipe, images, 4.0))


def distilled(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    teacher: Step,
    schedule: Schedule,
    distillation: Distillation,
    seed: int,
) -> Step:
    """Fine-tuning of ``parent`` with ``teacher``'s outputs beside the labels."""
    params = train.Distilling(replace(schedule, amp=setting.amp), distillation, seed)
    work = gmacs(recipe, setting.train_images, 4.0 * schedule.epochs)  # a training, and the teacher's forward passes
    parents = (parent, teacher)
    return make_step(
        Kind.TRAIN,
        f"distilled({parent.name})",
        train.run_distilled,
        params,
        parents,
        data=setting.data,
        device=setting.device,
        work=work,
    )


def measured(setting: Setting, recipe: Recipe, step: Step, seed: int) -> Step:
    """The evaluation of a step's network."""
    return measuring.evaluated(step, seed, setting.data, gmacs(recipe, setting.test_images, 1.0))


def distinct(steps: Sequence[Step]) -> list[Step]:
    """Each step once, in order: a network that serves every seed (weights that were given) is one network."""
    return list({step.key: step for step in steps}.values())


def evaluations(
    setting: Setting, recipe: Recipe, networks: Sequence[Step], measure: Measure
) -> tuple[list[Step], list[Step]]:
    """The evaluations of one network for each seed, and those of the different networks among them.

    A network that serves several seeds is evaluated once, under the first of them.
    """
    first: dict[str, Step] = {}
    for network, seed in zip(networks, setting.seeds, strict=True):
        if network.key not in first:
            first[network.key] = measure(setting, recipe, network, seed)
    return [first[network.key] for network in networks], list(first.values())


def measured_chain(
    setting: Setting,
    recipe: Recipe,
    *,
    dense: Dense,
    prune: Prune | None,
    tuning: Schedule | None,
    distillation: Distillation | None = None,
) -> Chain:
    """A row: dense, pruned (or not), fine-tuned (or not), evaluated; compared with the dense network, seed by seed.

    After fine-tuning also compared with the dense network tuned equally long.  With ``distillation`` the dense network
    is the pruned one's teacher; the control learns from the labels alone.
    """

    def tune(step: Step, teacher: Step, seed: int) -> Step:
        assert tuning is not None
        if distillation is None:
            return trained(setting, recipe, step, tuning, seed, "fine-tuned")
        return distilled(setting, recipe, step, teacher, tuning, distillation, seed)

    starts = [dense(setting, recipe, seed) for seed in setting.seeds]
    networks = [
        start if prune is None else prune(setting, recipe, start, seed)
        for start, seed in zip(starts, setting.seeds, strict=True)
    ]
    references, _ = evaluations(setting, recipe, starts, measured)
    controls: list[Step] = []
    if tuning is not None:
        # given weights are one dense network, and tuned with one seed for each pruned one
        networks = [tune(*given) for given in zip(networks, starts, setting.seeds, strict=True)]
        tuned = [
            trained(setting, recipe, start, tuning, seed, "fine-tuned")
            for start, seed in zip(starts, setting.seeds, strict=True)
        ]
        controls, _ = evaluations(setting, recipe, tuned, measured)
    runs, different = evaluations(setting, recipe, networks, measured)
    records = [*different, measuring.summarised(different)]
    if prune is not None or tuning is not None:
        records.append(measuring.compared(runs, references))
    if tuning is not None and prune is not None:
        records.append(measuring.compared(runs, controls, "_control"))
    if prune is not None and tuning is None:
        records += networks  # the reconstruction's error on held-out images
    return Chain(distinct(networks), records, runs, references)


def compared_chain(
    setting: Setting,
    recipe: Recipe,
    starts: Sequence[Step],
    networks: Sequence[Step],
    controls: Sequence[Step] = (),
    *,
    compare: bool = True,
    measure: Measure = measured,
) -> Chain:
    """One network for each seed, measured and, with ``compare``, compared with the dense ones in ``starts``.

    ``controls`` are dense networks that were trained as long.
    """
    runs, different = evaluations(setting, recipe, networks, measure)
    references, _ = evaluations(setting, recipe, starts, measure)
    records = [*different, measuring.summarised(different)]
    if compare:
        records.append(measuring.compared(runs, references))
    if controls:
        longer, _ = evaluations(setting, recipe, controls, measure)
        records.append(measuring.compared(runs, longer, "_control"))
    return Chain(list(networks), records, runs, references)


def under_protocols(setting: Setting, recipe: Recipe, *, dense: Dense, prune: Prune | None) -> Chain:
    """A row that is measured under each protocol of its further data, by metrics of their own."""
    starts = [dense(setting, recipe, seed) for seed in setting.seeds]
    networks = [
        start if prune is None else prune(setting, recipe, start, seed)
        for start, seed in zip(starts, setting.seeds, strict=True)
    ]
    records = []
    for name, other in setting.further.items():
        runs, _ = evaluations(other, recipe, networks, measured)
        references, _ = evaluations(other, recipe, starts, measured)
        # a pair that comes back for every seed is one pair
        pairs = list({(run.key, ref.key): (run, ref) for run, ref in zip(runs, references, strict=True)}.values())
        records.append(under([run for run, _ in pairs], [ref for _, ref in pairs], name))
    return Chain(distinct(networks), records)


def from_scratch(
    setting: Setting,
    recipe: Recipe,
    *,
    widths: Callable[[Recipe], Mapping[str, int]],
    label: str = "from scratch",
    schedule: Schedule | None = None,
) -> Chain:
    """The pruned shape with fresh weights, compared with the dense network.

    ``schedule`` is that of the dense network's training (:func:`bench.zoo.from_scratch`) unless one is given.
    """
    small = shape_of(recipe, widths(recipe))
    schedule = schedule or zoo.from_scratch(setting.scale, recipe)
    networks = [trained(setting, small, None, schedule, seed, label) for seed in setting.seeds]
    return compared_chain(setting, recipe, [dense(setting, recipe, seed) for seed in setting.seeds], networks)


def worth(setting: Setting, recipe: Recipe, *, dense: Dense, first: Prune, second: Prune) -> Chain:
    """What one choice is worth against another, paired by image and seed, without fine-tuning."""
    runs: tuple[list[Step], list[Step], list[Step]] = ([], [], [])
    for seed in setting.seeds:
        start = dense(setting, recipe, seed)
        for place, prune in enumerate((first, second)):
            runs[place].append(measured(setting, recipe, prune(setting, recipe, start, seed), seed))
        runs[2].append(measured(setting, recipe, start, seed))
    return Chain([], [measuring.contrasted(*runs)])
