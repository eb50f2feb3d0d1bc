"""State of a Jetson board: power mode, clocks, temperatures, power rails, throttling.

It is read from the kernel's files, without root and without NVIDIA's tools. Sources: the kernel's documentation of
ina3221, ina238 and of the thermal framework; "Platform Power and Performance" in NVIDIA's Jetson Linux developer guide,
releases 35 and 36.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

_GPU = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b")
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")  # rails that feed all others of the module
_FED_BY_OTHERS = ("VDDQ_VDD2_1V8AO",)  # AGX Orin: behind VIN_SYS_5V0
_MAX_CHANNELS = 3  # of one INA3221; higher numbers are sums and shunts


@dataclass(frozen=True)
class BoardState:
    """State of the board at one moment; values that it does not report are None or empty.

    Attributes:
        power_mode: as nvpmodel names it, e.g. ``MAXN``.
        gpu_hz, gpu_min_hz, gpu_max_hz: current clock, and the lowest and highest that the governor may set.
        cpu_hz: current clock of each core.
        celsius: temperature by zone.
        watts: power by rail.
        throttles: by name, counters of over-current events, and states of throttling devices, 0 when inactive.
    """

    power_mode: str | None = None
    gpu_hz: int | None = None
    gpu_min_hz: int | None = None
    gpu_max_hz: int | None = None
    cpu_hz: tuple[int, ...] = ()
    celsius: Mapping[str, float] = field(default_factory=dict)
    watts: Mapping[str, float] = field(default_factory=dict)
    throttles: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_watts(self) -> float | None:
        """Power of the module: of the rail that feeds all others where there is one, else the sum of the rails."""
        return None if not self.watts else sum(self.watts[rail] for rail in module_rails(self.watts))

    @property
    def clocks_locked(self) -> bool | None:
        """Whether the GPU's clock is fixed, as after ``jetson_clocks``; None: unknown."""
        return None if None in (self.gpu_min_hz, self.gpu_max_hz) else self.gpu_min_hz == self.gpu_max_hz


def module_rails(rails: Mapping[str, float]) -> list[str]:
    """The rails whose power adds up to the module's."""
    top = [rail for rail in rails if rail in _WHOLE]
    return top[:1] or [rail for rail in rails if rail not in _FED_BY_OTHERS]


class Board:
    """Reads the kernel's files of a board.

    Args:
        root: the folder that holds ``sys``, ``etc`` and ``var``; tests give another one.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def look(self) -> BoardState:
        """Read the current state."""
        gpu = self._gpu()
        hz, low, high = (None if gpu is None else _number(gpu / f"{name}_freq") for name in ("cur", "min", "max"))
        mode, cpus, zones = self._power_mode(), self._cpus(), self._zones()
        return BoardState(mode, hz, low, high, cpus, zones, self.watts(), self._throttles())

    def watts(self) -> dict[str, float]:
        """Power by rail: bus voltage (mV) times current (mA) of every INA3221 channel that has a name.

        Thor has an INA238 too, without names: its one channel is the input of the module, in microwatts.
        """
        found: dict[str, float] = {}
        for chip in self._hwmon("ina238"):
            if (microwatts := _number(chip / "power1_input")) is not None:
                found["VIN"] = microwatts / 1e6
        for chip in self._hwmon("ina3221"):
            for channel in range(1, _MAX_CHANNELS + 1):
                label = _text(chip / f"in{channel}_label")
                volts, amperes = _number(chip / f"in{channel}_input"), _number(chip / f"curr{channel}_input")
                if label and label != "NC" and volts is not None and amperes is not None:
                    found[label] = volts * amperes / 1e6
        return found

    def _power_mode(self) -> str | None:
        mode = re.search(r"pmode:(\d+)", _text(self._root / "var/lib/nvpmodel/status") or "")
        if mode is None:
            return None
        names = _text(self._root / "etc/nvpmodel.conf") or ""
        name = re.search(rf"POWER_MODEL\s+ID={int(mode[1])}\s+NAME=(\S+)", names)
        return name[1] if name else f"mode {int(mode[1])}"

    def _gpu(self) -> Path | None:
        found = sorted(path for path in self._root.glob("sys/class/devfreq/*") if _GPU.search(path.name))
        return found[0] if found else None

    def _cpus(self) -> tuple[int, ...]:
        files = self._by_number("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
        return tuple(1000 * hz for hz in map(_number, files) if hz is not None)

    def _zones(self) -> dict[str, float]:
        zones = self._by_number("sys/class/thermal/thermal_zone*")
        found = ((_text(zone / "type"), _number(zone / "temp")) for zone in zones)  # a zone that is off cannot be read
        return {name: degrees / 1e3 for name, degrees in found if name and degrees is not None}

    def _throttles(self) -> dict[str, int]:
        """States of throttling cooling devices, and counters of over-current events."""
        found: dict[str, int] = {}
        for device in self._by_number("sys/class/thermal/cooling_device*"):
            name, state = _text(device / "type"), _number(device / "cur_state")
            if name and "throttle" in name and state is not None:
                found[name] = max(state, found.get(name, 0))
        for chip in self._hwmon("soctherm"):
            for counter in sorted(chip.glob("oc*_event_cnt")):
                if (count := _number(counter)) is not None:
                    found[counter.name.removesuffix("_event_cnt")] = count
        return found

    def _hwmon(self, driver: str) -> Iterator[Path]:
        for chip in self._by_number("sys/class/hwmon/*"):
            if (_text(chip / "name") or "").startswith(driver):
                yield chip

    def _by_number(self, pattern: str) -> list[Path]:
        """Paths that match, in the order of the numbers in them."""
        paths = self._root.glob(pattern)
        return sorted(paths, key=lambda path: ([int(digits) for digits in re.findall(r"\d+", str(path))], str(path)))


@dataclass
class Power:
    """Samples of a board's total power while something ran: seconds since the start, watts."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    @property
    def mean_watts(self) -> float | None:
        """Mean power over time by the trapezoidal rule; None without samples."""
        if not self.samples:
            return None
        if len(self.samples) == 1 or self.samples[-1][0] == self.samples[0][0]:
            return self.samples[0][1]
        pairs = zip(self.samples, self.samples[1:], strict=False)
        joules = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)
        return joules / (self.samples[-1][0] - self.samples[0][0])


@contextmanager
def sampling(board: Board, every_seconds: float = 0.1) -> Iterator[Power]:
    """Sample the total power in another thread while the block runs, including its start and end."""
    power, stop, begin = Power(), threading.Event(), monotonic()

    def sample() -> None:
        watts = board.watts()
        if watts:
            power.samples.append((monotonic() - begin, sum(watts[rail] for rail in module_rails(watts))))

    def run() -> None:
        while not stop.wait(every_seconds):
            sample()

    sample()
    thread = threading.Thread(target=run, name="edgeres-power", daemon=True)
    thread.start()
    try:
        yield power
    finally:
        stop.set()
        thread.join()
        sample()


def throttled(before: BoardState, after: BoardState) -> list[str]:
    """Messages on what slowed the clocks down between two states; empty where nothing did."""
    found = []
    for name, now in after.throttles.items():
        grown = now - before.throttles.get(name, 0)
        if "throttle" in name and now:
            found.append(f"{name} is on")
        elif "throttle" not in name and grown > 0:
            found.append(f"{name}: {grown} over-current event{'s' if grown > 1 else ''}")
    was, is_now = before.gpu_max_hz, after.gpu_max_hz
    if was and is_now and is_now < was:
        found.append(f"the GPU's highest clock fell from {was / 1e6:.0f} to {is_now / 1e6:.0f} MHz")
    return found


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None
