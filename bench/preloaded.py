"""Imported by the server that rows' processes are forked from: what each would find out anew is found out once.

The papers with their rows take seconds, the embedded data, which are drawn, some more, and so does the code of keys.
"""

from __future__ import annotations

import contextlib
import json
import os

import torch

from bench import planning
from bench.isolated import ROWS
from bench.planning import Job


def warm() -> None:
    """Plans the rows that the environment names, for what stays in memory."""
    # one thread: a pool of them does not live on in a process that is forked
    torch.set_num_threads(1)
    for name, scale in json.loads(os.environ.get(ROWS, "[]")):
        with contextlib.suppress(Exception):  # whoever runs the row meets it again and tells it
            paper = planning.scripts()[0][name.partition("/")[0]]
            planning.plan(paper, [paper.ids[name]], Job(scale=scale, device="cpu", progress=False))


planning.scripts()
warm()
