"""How long and how fast a network is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Hyper-parameters of one training.

    ``shape`` is ``constant``, ``cosine`` (with a linear warm-up over the first 5 % of the iterations) or ``steps``
    (divided by ten at each of ``milestones``, in epochs).  ``batch`` is the batch over all processes; ``optimizer`` is
    ``SGD`` or ``AdamW`` (which takes no momentum).
    """

    epochs: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    shape: str = "constant"
    milestones: tuple[int, ...] = ()
    amp: bool = False
    clip: float | None = None
    optimizer: str = "SGD"


def longer(schedule: Schedule, times: int) -> Schedule:
    """``times`` as many epochs of the same kind: the rate falls at the same shares of them."""
    return lasting(schedule, times * schedule.epochs)


def lasting(schedule: Schedule, epochs: int) -> Schedule:
    """So many epochs of the same kind: the rate falls at the same shares of them."""
    milestones = tuple(epochs * milestone // schedule.epochs for milestone in schedule.milestones)
    return replace(schedule, epochs=epochs, milestones=milestones)
