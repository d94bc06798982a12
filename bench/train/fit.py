"""Training on mmengine's Runner: optimiser, schedules, AMP, DDP by its launchers, resume, a history of every epoch."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import pickle
import random
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.device import utils as device_utils
from mmengine.hooks import Hook, SyncBuffersHook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from bench.data.augment import Augmentable, Augmented
from bench.errors import UserError
from bench.processes import is_main, launched, start, summed
from bench.store import disk_errors
from bench.train.graphed import graphed
from bench.train.onednn import spared
from bench.train.precision import full_where_asked, optim_wrapper
from bench.train.schedule import Schedule

_run = itertools.count()
# looked at for a loss that is no number; on a GPU each look waits for the device
_LOOK_EVERY = 20

# of each epoch: its number (from 1), the mean loss (and, of a loss of several terms, their means), the learning rate at
# its end, and a classifier's accuracy (%), on the augmented training images as they were trained on
History = list[dict[str, float]]


class Classifier(BaseModel):  # type: ignore[misc]
    """A network with cross-entropy, and perhaps a penalty, in the form that mmengine's Runner calls.

    ``penalty(net)`` is added to the loss, after the forward pass.
    """

    def __init__(self, net: nn.Module, penalty: Callable[[nn.Module], Tensor] | None = None) -> None:
        super().__init__()
        self.net, self.penalty = net, penalty
        self.static = penalty is None  # a penalty is any function

    def forward(  # type: ignore[override]
        self, images: Tensor, labels: Tensor, mode: str = "loss"
    ) -> dict[str, Tensor] | Tensor:
        """Images B x 3 x H x W, labels B: the mean cross-entropy, or the logits B x classes."""
        outputs = self.net(images).float()
        if mode != "loss":
            return outputs  # type: ignore[no-any-return]
        loss = F.cross_entropy(outputs, labels)
        right = (outputs.detach().argmax(1) == labels).float().mean()
        return {"loss": loss if self.penalty is None else loss + self.penalty(self.net), "accuracy": right}


class _Reseed(Hook):  # type: ignore[misc]
    """Reseeds every generator at each epoch from (seed, epoch), so that a resumed run repeats an undisturbed one."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Runner) -> None:
        seed_everything(self.seed, runner.epoch)
        data = runner.train_dataloader.dataset
        if hasattr(data, "epoch"):
            data.epoch = runner.epoch
        runner.train_dataloader.sampler.sampler.set_epoch(runner.epoch)


class _Runner(Runner):  # type: ignore[misc]
    """Reads tensors and plain values from a checkpoint: mmengine's own would unpickle whatever else it finds."""

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", *_: Any, **__: Any) -> dict[str, Any]:
        """As mmengine's, of a file that :func:`_sound` has looked at."""
        checkpoint: dict[str, Any] = torch.load(filename, map_location=map_location, weights_only=True)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model.load_state_dict(checkpoint["state_dict"])
        self._has_loaded = True
        return checkpoint


def _sound(path: Path) -> bool:
    """Whether a checkpoint is whole, and tensors and plain values alone; torch looks at no checksum of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        return "state_dict" in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, TypeError):
        return False


class _Checkpoint(Hook):  # type: ignore[misc]
    """One checkpoint, put in the place of the last one when it is whole.

    mmengine's own hook removes the last checkpoint before it writes the next one: killed in between, it leaves neither.
    """

    priority = "VERY_LOW"  # after the schedules' step

    def __init__(self, path: Path) -> None:
        self.path = path

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        # its history of the log is objects, which only a pickle holds; ours is in the checkpoint
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}

    def after_train_epoch(self, runner: Runner) -> None:
        part = self.path.with_suffix(".part")
        runner.save_checkpoint(str(part.parent), part.name)
        if is_main():
            part.replace(self.path)


class _Watch(Hook):  # type: ignore[misc]
    """The history, the progress bar, and the end of a training whose loss is no longer a number."""

    def __init__(self, label: str, progress: bool) -> None:
        self.label, self.progress = label, progress
        self.bar: tqdm[Any] | None = None
        self.history: History = []
        self.sums: Tensor | None = None
        self.further: list[str] = []

    def before_train(self, runner: Runner) -> None:
        self.bar = tqdm(
            desc=self.label, total=runner.max_iters, initial=runner.iter, disable=not self.progress, leave=False
        )

    def before_train_epoch(self, runner: Runner) -> None:
        self.sums = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss, count = outputs["loss"].detach().double(), len(data_batch[1])
        self.further = [name for name in outputs if name == "accuracy" or name.startswith("loss_")]
        means = [loss, *(torch.as_tensor(outputs[name]).to(loss) for name in self.further)]
        sums = torch.stack([*(count * mean.detach() for mean in means), loss.new_full((), count)])
        self.sums = sums if self.sums is None else self.sums + sums
        if (batch_idx + 1) % _LOOK_EVERY == 0:
            self._check(runner)
        if self.bar is not None:
            self.bar.update()
            if self.progress and (batch_idx + 1) % _LOOK_EVERY == 0:
                self.bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)

    def after_train_epoch(self, runner: Runner) -> None:
        loss, *further, count = self._check(runner)
        entry = {"epoch": runner.epoch + 1, "loss": loss / count, "lr": float(runner.optim_wrapper.get_lr()["lr"][0])}
        for name, value in zip(self.further, further, strict=True):
            entry[name] = (100.0 if name == "accuracy" else 1.0) * value / count
        self.history.append(entry)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])

    def after_train(self, runner: Runner) -> None:
        if self.bar is not None:
            self.bar.close()

    def _check(self, runner: Runner) -> list[float]:
        """The sums so far over all processes: each sees the same, so that all end together or none."""
        assert self.sums is not None
        sums: list[float] = summed(self.sums.clone()).tolist()
        if not math.isfinite(sums[0]):
            raise UserError(
                f"{self.label}: the loss is no longer a number in epoch {runner.epoch + 1}: lower the learning rate, "
                "or check the weights"
            )
        return sums


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seeds Python, NumPy and torch (CUDA too) from (seed, epoch)."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def fit(
    net: nn.Module,
    split: Augmentable,
    schedule: Schedule,
    seed: int,
    work: Path,
    device: str,
    label: str = "training",
    workers: int = 0,
    progress: bool = True,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> History:
    """Trains a classifier on ``split`` with augmentation and cross-entropy (plus ``penalty(net)``, if there is one).

    ``net`` is trained in place, in evaluation mode and on the CPU afterwards.  Returns the history.
    """
    data = Augmented(split.on(device), seed)
    workers = workers if split.decodes else 0  # what lies on the GPU cannot be read by other processes
    history = train(Classifier(net, penalty), data, schedule, seed, work, device, label, workers, progress)
    net.cpu().eval()
    return history


def train(
    model: BaseModel,
    data: Dataset[Any],
    schedule: Schedule,
    seed: int,
    work: Path,
    device: str,
    label: str,
    workers: int = 0,
    progress: bool = True,
) -> History:
    """Trains ``model``, in place; ``data`` gives a whole batch (inputs, targets) for a list of places.

    ``work/checkpoint.pth`` is replaced after each epoch; where it is found, training goes on from it, or begins anew
    where it is damaged.  Under torchrun the processes share the batch.  Returns the history.  Raises :class:`UserError`
    when the loss is no longer finite or the disk is full.
    """
    start(device)
    seed_everything(seed)
    world = launched()
    order = DefaultSampler(data, shuffle=True, seed=seed)  # type: ignore[arg-type]
    inner = BatchSampler(order, max(1, schedule.batch // world), drop_last=False)  # type: ignore[arg-type]
    loader = DataLoader(data, sampler=inner, batch_size=None, num_workers=workers)
    iterations = len(inner) * schedule.epochs
    checkpoint = work / "checkpoint.pth"
    found = checkpoint.exists()
    resumes = found and _sound(checkpoint)
    if found and not resumes and is_main():
        print(f"{label}: the checkpoint {checkpoint} is damaged: training begins anew", file=sys.stderr, flush=True)
    watch = _Watch(label, progress and is_main())
    wrapper = optim_wrapper(schedule.amp, device)
    with (
        _on_device(device),
        _quiet(),
        disk_errors(work),
        spared(model),
        full_where_asked(model),
        graphed(model, device, schedule.amp),
    ):
        runner = _Runner(
            model=model,
            work_dir=str(work),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=schedule.epochs),
            optim_wrapper=dict(
                **wrapper,
                optimizer=_optimizer(schedule),
                clip_grad=None if schedule.clip is None else dict(max_norm=schedule.clip),
            ),
            param_scheduler=_schedulers(schedule, iterations),
            default_hooks=dict(
                logger=None,
                # they keep each iteration's losses, for which they wait for the GPU; _Watch sums there
                runtime_info=None,
                timer=None,
                sampler_seed=None,  # _Reseed does it, for our sampler of whole batches
                checkpoint=None,  # _Checkpoint does it
            ),
            # processes average the running statistics of batch norms, which each has from its own share
            custom_hooks=[
                _Reseed(seed),
                watch,
                _Checkpoint(checkpoint),
                *([SyncBuffersHook()] if world > 1 else []),
            ],
            load_from=str(checkpoint) if resumes else None,
            resume=resumes,
            launcher="none" if world == 1 else "pytorch",
            randomness=dict(seed=seed, deterministic=False),
            visualizer=dict(type="Visualizer", vis_backends=[]),
            log_level="ERROR",
            experiment_name=f"{work.name[:12]}-{os.getpid()}-{next(_run)}",
            cfg=dict(model_wrapper_cfg=_wrapper(device, world)),
        )
        runner.train()
    return watch.history


def _optimizer(schedule: Schedule) -> dict[str, Any]:
    if schedule.optimizer == "AdamW":
        # in one pass over all weights: a loop over tensors took 8 % of a narrow VGG-16's training
        return dict(type="AdamW", lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    if schedule.optimizer != "SGD":
        raise UserError(f"unknown optimizer {schedule.optimizer!r}: choose SGD or AdamW")
    return dict(
        type="SGD",
        lr=schedule.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        nesterov=schedule.nesterov,
    )


def _wrapper(device: str, world: int) -> dict[str, Any] | None:
    """How mmengine wraps the model for DDP; on the CPU it must not name GPU ids."""
    if world == 1 or device.startswith("cuda"):
        return None
    return dict(type="MMDistributedDataParallel", device_ids=None)


def _schedulers(schedule: Schedule, iterations: int) -> list[dict[str, Any]]:
    if schedule.shape == "constant" or (schedule.shape == "cosine" and iterations < 2):
        return []
    if schedule.shape == "steps":
        return [dict(type="MultiStepLR", milestones=list(schedule.milestones), gamma=0.1, by_epoch=True)]
    if schedule.shape == "cosine":
        warm = max(1, iterations // 20)
        return [
            dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warm),
            dict(type="CosineAnnealingLR", T_max=max(1, iterations - warm), by_epoch=False, begin=warm, end=iterations),
        ]
    raise UserError(f"unknown schedule {schedule.shape!r}: choose constant, cosine or steps")


@contextlib.contextmanager
def _on_device(device: str) -> Iterator[None]:
    """mmengine trains on the GPU wherever there is one; this makes it follow ``device``, convolving repeatably."""
    before = device_utils.DEVICE, torch.backends.cudnn.deterministic
    device_utils.DEVICE, torch.backends.cudnn.deterministic = device.split(":")[0], True
    try:
        yield
    finally:
        device_utils.DEVICE, torch.backends.cudnn.deterministic = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps mmengine's log off the screen and its prints out of our output; our progress bar says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
