"""Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv 1503.02531): training on another network's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.augment import Augmentable, Augmented
from bench.train.fit import History, train
from bench.train.schedule import Schedule


@dataclass(frozen=True)
class Distillation:
    """The temperature T by which both networks' outputs are softened, and the ``weight`` (0 to 1) of the soft targets.

    With weight 1 the labels are not looked at.
    """

    temperature: float
    weight: float


def distillation_loss(outputs: Tensor, targets: Tensor, labels: Tensor, options: Distillation) -> Tensor:
    """(1 - weight) cross-entropy + weight T^2 KL(softmax(targets / T) || softmax(outputs / T)), mean over the images.

    ``outputs`` (the student's) and ``targets`` (the teacher's) are logits B x classes, ``labels`` B.  T^2 keeps the
    soft part's gradients as large as the hard one's (section 2 of the paper).
    """
    soft = (outputs / options.temperature).log_softmax(1)
    wanted = (targets / options.temperature).log_softmax(1)
    distance = F.kl_div(soft, wanted, reduction="batchmean", log_target=True)
    hard = F.cross_entropy(outputs, labels)
    return (1.0 - options.weight) * hard + options.weight * options.temperature**2 * distance


class Student(BaseModel):  # type: ignore[misc]
    """A network that learns from labels and from ``teacher``, in the form that mmengine's Runner calls."""

    def __init__(self, net: nn.Module, teacher: nn.Module, options: Distillation) -> None:
        super().__init__()
        self.net, self.options = net, options
        # in a tuple it is no part of this module: neither trained nor saved, and it stays in evaluation mode
        self._teacher = (teacher.eval(),)

    def forward(  # type: ignore[override]
        self, images: Tensor, labels: Tensor, mode: str = "loss"
    ) -> dict[str, Tensor] | Tensor:
        """Images B x 3 x H x W, labels B: the loss, or the logits B x classes."""
        outputs = self.net(images).float()
        if mode != "loss":
            return outputs  # type: ignore[no-any-return]
        with torch.no_grad():
            targets = self._teacher[0](images).float()
        right = (outputs.detach().argmax(1) == labels).float().mean()
        return {"loss": distillation_loss(outputs, targets, labels, self.options), "accuracy": right}


def distil(
    net: nn.Module,
    teacher: nn.Module,
    split: Augmentable,
    schedule: Schedule,
    options: Distillation,
    seed: int,
    work: Path,
    device: str,
    label: str = "training",
    workers: int = 0,
    progress: bool = True,
) -> History:
    """:func:`bench.train.fit.fit` with :func:`distillation_loss`: the teacher sees the same augmented images.

    ``net`` is trained in place, in evaluation mode and on the CPU afterwards; ``teacher`` is not changed.  Returns the
    history, whose loss is the whole one.
    """
    data = Augmented(split.on(device), seed)
    workers = workers if split.decodes else 0  # what lies on the GPU cannot be read by other processes
    model = Student(net, teacher.to(device), options)
    history = train(model, data, schedule, seed, work, device, label, workers, progress)
    net.cpu().eval()
    teacher.cpu()
    return history
