"""The state of the machine around a measurement, and what of it makes a time untrustworthy.

Of a GPU it is read by NVML (package nvidia-ml-py): clocks, temperature, power, throttle reasons, how long the driver
held the clocks down, other processes, MIG, persistence mode.  Nothing is ever set.  Of the processor: load, cores at
hand, governor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.measure.latency import machine

# NVML's bits of the reasons for which a clock is below its highest (nvml.h); idle and settings of the user are no fault
THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# so much of the time may be spent below the clock that the driver wanted
MOST_THROTTLED = 0.2
_POWER, _THERMAL = 0, 1  # NVML_PERF_POLICY_*
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def state(device: str) -> dict[str, Any]:
    """What the machine is doing now; a value that cannot be read says why."""
    found = machine("cpu")
    with contextlib.suppress(OSError):
        found["governor"] = _GOVERNOR.read_text().strip()
    if device.startswith("cuda"):
        found["gpu"] = gpu_state(torch.device(device).index or 0)
    return found


def gpu_state(index: int, nvml: Any = None) -> dict[str, Any]:
    """The GPU by NVML; ``nvml`` stands in for the module in tests."""
    with _opened(nvml) as (module, problem):
        if module is None:
            return {"not read": problem}
        try:
            handle = module.nvmlDeviceGetHandleByUUID(_uuid(index)) if nvml is None else index
        except Exception as error:  # NVML raises kinds of its own
            return {"not read": type(error).__name__}
        return {name: _tried(read, module, handle) for name, read in _READINGS.items()}


def _uuid(index: int) -> str:
    # CUDA_VISIBLE_DEVICES may renumber the GPUs; NVML knows nothing of it
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


@contextlib.contextmanager
def _opened(nvml: Any) -> Iterator[tuple[Any, str]]:
    if nvml is not None:
        yield nvml, ""
        return
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # absent, or no driver: the record says that nothing was read
        yield None, type(error).__name__
        return
    try:
        yield pynvml, ""
    finally:
        pynvml.nvmlShutdown()


def _reasons(nvml: Any, handle: Any) -> list[str]:
    ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    bits = (ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle)
    return [name for bit, name in THROTTLED.items() if bits & bit]


def _others(nvml: Any, handle: Any) -> int:
    found = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    # in a container this process is known by a number of the host's
    ours = os.getpid() in found or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return max(0, len(found) - ours)


def _held_down(nvml: Any, handle: Any) -> dict[str, int]:
    found = {}
    for name, policy in (("power", _POWER), ("thermal", _THERMAL)):
        status = nvml.nvmlDeviceGetViolationStatus(handle, policy)
        found[name], found["at"] = int(status.violationTime), int(status.referenceTime)
    return found


_READINGS: dict[str, Callable[[Any, Any], Any]] = {
    "sm_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
    "memory_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
    "highest_sm_mhz": lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
    "celsius": lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    "milliwatts": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle),
    "millijoules": lambda nvml, handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
    "persistence": lambda nvml, handle: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
    "mig": lambda nvml, handle: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
    "throttled_by": _reasons,
    "other_processes": _others,
    "held_down_ns": _held_down,
}


def _tried(read: Callable[[Any, Any], Any], nvml: Any, handle: Any) -> Any:
    try:
        return read(nvml, handle)
    except Exception as error:  # not every GPU tells everything
        return f"not read ({type(error).__name__})"


def throttled_share(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """The share of the time between two states of a GPU in which power or heat held its clocks down."""
    first, last = before.get("held_down_ns"), after.get("held_down_ns")
    if not isinstance(first, Mapping) or not isinstance(last, Mapping) or last["at"] <= first["at"]:
        return None
    spent = max(last[name] - first[name] for name in ("power", "thermal"))
    # the counters are nanoseconds, their reference time microseconds
    return float(min(1.0, spent / (1e3 * (last["at"] - first["at"]))))


# a clock of less than this share of the highest, right after the work, is a low one
_LOW_CLOCK = 0.75


def labels(device: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What a reader has to know about the machine while it was measured."""
    found: list[str] = []
    load = max(state["load"][0] / state["processors"] for state in (before, after))
    found += [f"other work on the machine: load {load:.1f} a processor"] if load > 1.25 else []
    if not device.startswith("cuda"):
        return found
    gpus = [before.get("gpu", {}), after.get("gpu", {})]
    for problem in dict.fromkeys(gpu["not read"] for gpu in gpus if "not read" in gpu):
        hint = ": install nvidia-ml-py" if problem == ModuleNotFoundError.__name__ else f" ({problem})"
        return [*found, f"the GPU's state was not read{hint}"]
    clock, highest = gpus[1]["sm_mhz"], gpus[1]["highest_sm_mhz"]
    if isinstance(clock, int) and isinstance(highest, int) and clock < _LOW_CLOCK * highest:
        found.append(f"low clock: {clock} of {highest} MHz")
    if any(gpu["mig"] is True for gpu in gpus):
        found.append("a MIG slice of the GPU")
    others = [gpu["other_processes"] for gpu in gpus if isinstance(gpu["other_processes"], int)]
    if any(others):
        found.append(f"shared GPU: {max(others)} other processes")
    if any(gpu["persistence"] is False for gpu in gpus):
        found.append("persistence mode is off")
    reasons = {name for gpu in gpus if isinstance(gpu["throttled_by"], list) for name in gpu["throttled_by"]}
    if reasons:
        found.append(f"throttled: {', '.join(sorted(reasons))}")
    return found


def unstable(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Why the times are no measurement of the network: the GPU was throttled for too much of them; else None."""
    share = throttled_share(before.get("gpu", {}), after.get("gpu", {}))
    if share is not None and share > MOST_THROTTLED:
        return f"the GPU was throttled for {100 * share:.0f} % of the time"
    return None
