"""The machine's state: a made-up NVML, what it makes us say, and what makes times worthless."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.latency import machine


def nvml(**changes: Any) -> SimpleNamespace:
    """The part of NVML that is asked, of a GPU in good order."""
    readings: dict[str, Any] = {
        "nvmlDeviceGetClockInfo": lambda handle, kind: {"sm": 1700, "memory": 2600}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 55,
        "nvmlDeviceGetPowerUsage": lambda handle: 350_000,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 5_000,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetMigMode": lambda handle: [0, 0],
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x01,  # idle is no fault
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
        "nvmlDeviceGetViolationStatus": lambda handle, policy: SimpleNamespace(violationTime=0, referenceTime=0),
        "NVML_CLOCK_SM": "sm",
        "NVML_CLOCK_MEM": "memory",
        "NVML_TEMPERATURE_GPU": 0,
        **changes,
    }
    return SimpleNamespace(**readings)


def state(**changes: Any) -> dict[str, Any]:
    return {"load": [0.5, 0.5, 0.5], "processors": 2, "gpu": machine.gpu_state(0, nvml(**changes))}


def test_what_is_read() -> None:
    found = machine.gpu_state(0, nvml())
    assert found == {
        "sm_mhz": 1700,
        "memory_mhz": 2600,
        "highest_sm_mhz": 1980,
        "celsius": 55,
        "milliwatts": 350_000,
        "millijoules": 5_000,
        "persistence": True,
        "mig": False,
        "throttled_by": [],
        "other_processes": 0,
        "held_down_ns": {"power": 0, "at": 0, "thermal": 0},
    }
    assert machine.labels("cuda", state(), state()) == []


def test_a_gpu_that_tells_less_says_so() -> None:
    def refused(handle: Any) -> int:
        raise RuntimeError

    found = machine.gpu_state(0, nvml(nvmlDeviceGetPowerUsage=refused))
    assert found["milliwatts"] == "not read (RuntimeError)" and found["celsius"] == 55
    older = nvml(nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x40)
    del older.nvmlDeviceGetCurrentClocksEventReasons
    assert machine.gpu_state(0, older)["throttled_by"] == ["hardware thermal slowdown"]


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"nvmlDeviceGetMigMode": lambda handle: [1, 1]}, "a MIG slice of the GPU"),
        (
            {"nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=-1)] * 2},
            "shared GPU: 2 other processes",
        ),
        ({"nvmlDeviceGetPersistenceMode": lambda handle: 0}, "persistence mode is off"),
        ({"nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x24}, "throttled: power cap, thermal slowdown"),
    ],
)
def test_labels(changes: dict[str, Any], label: str) -> None:
    assert machine.labels("cuda", state(), state(**changes)) == [label]


def test_low_clocks_and_a_busy_processor_beside_a_gpu_are_labelled() -> None:
    low = state(nvmlDeviceGetClockInfo=lambda handle, kind: 1200)
    assert machine.labels("cuda", low, state()) == []  # before the work a GPU may rest
    assert machine.labels("cuda", state(), low) == ["low clock: 1200 of 1980 MHz"]
    busy = {**state(), "load": [6.0, 1.0, 1.0]}
    assert machine.labels("cuda", state(), busy) == ["other work on the machine: load 3.0 a processor"]


@pytest.mark.parametrize(
    ("problem", "label"),
    [
        ("ModuleNotFoundError", "the GPU's state was not read: install nvidia-ml-py"),
        ("NVMLError_LibraryNotFound", "the GPU's state was not read (NVMLError_LibraryNotFound)"),
    ],
)
def test_why_the_state_was_not_read(problem: str, label: str) -> None:
    assert machine.labels("cuda", {**state(), "gpu": {"not read": problem}}, state()) == [label]


def test_this_process_by_a_number_of_the_host_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container a process knows not the number by which the driver does; it is one that computes."""
    monkeypatch.setattr(machine.torch.cuda, "is_initialized", lambda: True)
    for pids, others in (([], 0), ([4711], 0), ([4711, 4712], 1)):
        running = [SimpleNamespace(pid=pid) for pid in pids]
        module = nvml(nvmlDeviceGetComputeRunningProcesses=lambda handle, found=running: found)
        assert machine.gpu_state(0, module)["other_processes"] == others


def test_a_busy_processor_is_labelled() -> None:
    busy = {"load": [6.0, 1.0, 1.0], "processors": 2}
    idle = {"load": [1.0, 1.0, 1.0], "processors": 2}
    assert machine.labels("cpu", idle, idle) == []
    assert machine.labels("cpu", idle, busy) == ["other work on the machine: load 3.0 a processor"]


def held(power: int, thermal: int, at: int) -> dict[str, Any]:
    return {"held_down_ns": {"power": power, "thermal": thermal, "at": at}}


def test_times_of_a_throttled_gpu_are_none() -> None:
    """Of 2 s (the reference is in microseconds) heat held the clocks down for 0.5 s (in nanoseconds)."""
    first, last = held(0, 0, 1_000_000), held(100_000_000, 500_000_000, 3_000_000)
    assert machine.throttled_share(first, last) == pytest.approx(0.25)
    assert machine.unstable({"gpu": first}, {"gpu": last}) == "the GPU was throttled for 25 % of the time"
    assert machine.unstable({"gpu": first}, {"gpu": held(0, 300_000_000, 3_000_000)}) is None
    assert machine.unstable({"gpu": {"not read": "x"}}, {"gpu": {}}) is None


def test_the_state_of_this_machine() -> None:
    found = machine.state("cpu")
    assert found["threads"] >= 1 and found["processors"] >= 1 and len(found["load"]) == 3
