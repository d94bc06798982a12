"""Mixed precision on a processor: a plain loop under autocast, gates in full precision, and who has no bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.data.images import MemorySplit
from bench.errors import UserError
from bench.gating.layer import Gate, GateOptions
from bench.train import precision
from bench.train.fit import fit, seed_everything
from bench.train.schedule import Schedule

needs_bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16")


def network() -> nn.Module:
    seed_everything(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def split() -> MemorySplit:
    images = torch.randint(0, 256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return MemorySplit(images, torch.arange(32) % 4, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in net.parameters()])


@needs_bf16
def test_training_in_bf16_is_the_plain_loop_under_autocast_on_weights_in_fp32(tmp_path: Path) -> None:
    data, net, plain, full = split(), network(), network(), network()
    schedule = Schedule(epochs=3, lr=0.05, batch=32, momentum=0.0)
    for trained, amp, name in ((net, True, "mixed"), (full, False, "full")):
        (tmp_path / name).mkdir()
        fit(trained, data, Schedule(**{**vars(schedule), "amp": amp}), 0, tmp_path / name, "cpu", progress=False)
    images = data.batch(list(range(32))).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            logits = plain(images)
        assert logits.dtype == torch.bfloat16
        gradients = torch.autograd.grad(F.cross_entropy(logits.float(), data.labels), list(plain.parameters()))
        with torch.no_grad():
            for p, g in zip(plain.parameters(), gradients, strict=True):
                p.sub_(0.05 * g)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32, torch.int64}
    moved = (weights(full) - weights(network())).norm()
    # the order of the images in the batch moves last digits; bf16 itself moves a hundred times as much
    assert (weights(net) - weights(plain)).norm() < 3e-3 * moved
    assert 1e-4 * moved < (weights(net) - weights(full)).norm() < 5e-2 * moved


@needs_bf16
def test_gates_stay_in_full_precision_so_that_equal_saliencies_are_no_rounding() -> None:
    torch.manual_seed(0)
    gate = Gate(16, 64, GateOptions(), rectified=True)
    x = torch.randn(8, 16, 5, 5)
    plain = (x.abs().mean((2, 3)) @ gate.weight.T + gate.bias).relu()
    with torch.autocast("cpu", torch.bfloat16):
        with precision.full_where_asked(nn.Sequential(gate)):
            g = gate(x)
        rounded = gate(x)
    torch.testing.assert_close(g, plain)
    assert g.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    assert max(len(row) - len(row.unique()) for row in rounded.detach()) > 0  # what it would have been: ties


def test_a_processor_without_bf16_is_told_so_and_others_get_what_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.optim_wrapper(False, "cpu") == precision.optim_wrapper(False, "cuda") == {"type": "OptimWrapper"}
    assert precision.optim_wrapper(True, "cuda") == {"type": "AmpOptimWrapper"}
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="no bf16: leave out --amp"):
        precision.optim_wrapper(True, "cpu")
