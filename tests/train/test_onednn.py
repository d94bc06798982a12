"""Training narrow strided shortcuts on channels-last images, in a process of its own because the fault ends it."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from bench.train.onednn import spared

# fewer than 16 input channels and 157 images: without the guard most of these networks end their process by SIGSEGV or
# SIGABRT with AVX-512
_SCRIPT = """
import torch
from bench.train.onednn import spared

torch.set_num_threads(2)
torch.manual_seed(0)
for inputs, last in ((8, False), (8, True), (4, False)):
    conv = torch.nn.Conv2d(inputs, 16, 1, stride=2, bias=False)
    if last:
        conv = conv.to(memory_format=torch.channels_last)
    with spared(torch.nn.Sequential(conv)):
        for _ in range(5):
            x = torch.randn(157, inputs, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
            y = conv(x)
            g = torch.randn(y.shape)
            conv.zero_grad()
            y.backward(g.to(memory_format=torch.channels_last))
            expected = torch.einsum("nchw,nohw->oc", x.detach()[:, :, ::2, ::2].double(), g.double())
            assert torch.allclose(conv.weight.grad[:, :, 0, 0].double(), expected, rtol=1e-3, atol=1e-3), (inputs, last)
"""


def test_gradients_of_narrow_strided_shortcuts() -> None:
    """The weights' gradient equals its definition, sum over images and places of input times output gradient."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_only_what_is_in_reach_changes_its_layout() -> None:
    """Wide, unstrided and 3x3 convolutions stay channels-last; the narrow shortcut's output is the same in both."""
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    wide = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last)
    narrow, unstrided, large = nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, stride=2)
    full = nn.Conv2d(16, 4, 1, stride=2)
    before = narrow(x)
    assert before.is_contiguous(memory_format=torch.channels_last)
    with spared(nn.ModuleList([narrow, unstrided, large, full])):
        inside = narrow(x)
        assert inside.is_contiguous() and torch.allclose(inside, before, atol=1e-6)
        for conv, images in ((unstrided, x), (large, x), (full, wide)):
            assert conv(images).is_contiguous(memory_format=torch.channels_last)
    assert narrow(x).is_contiguous(memory_format=torch.channels_last)  # the hooks are gone
