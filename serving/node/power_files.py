"""What Linux tells of electricity: batteries and mains in power_supply, energy counters in powercap.

Everything may be missing, unreadable or nonsense: then it is unknown, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")
POWERCAP = Path("/sys/class/powercap")
# More than any device has or draws: what lies beyond is no reading.
MAX_WATTS = 1e5
_MAX_ENERGY_UWH = 1e9
_MAX_NUMBER = 1e20
_FEEDS = frozenset({"Mains", "USB", "Wireless"})


@dataclass(frozen=True, slots=True)
class Supplies:
    """`discharge_w` is what the batteries give, None where they do not say or are not discharging."""

    on_battery: bool = False
    battery_share: float | None = None
    discharge_w: float | None = None


def read_supplies(folder: Path = SUPPLIES) -> Supplies:
    """What feeds this device. Batteries of mice and the like do not count."""
    online: list[bool] = []
    shares: list[tuple[float, float]] = []
    discharging, watts = False, 0.0
    for supply in _folders(folder):
        kind = _text(supply / "type")
        if kind in _FEEDS:
            online.append(_text(supply / "online") not in ("", "0"))
        elif kind == "Battery" and _text(supply / "scope") != "Device" and _text(supply / "present") != "0":
            share = _share(supply)
            if share is not None:
                shares.append((share, _size(supply)))
            if _text(supply / "status") == "Discharging":
                discharging = True
                watts += _watts(supply)
    whole = sum(size for _, size in shares)
    return Supplies(
        # A battery that discharges while the mains are plugged in only helps out.
        on_battery=discharging and not any(online),
        battery_share=sum(share * size for share, size in shares) / whole if shares else None,
        discharge_w=watts if discharging and 0.0 < watts <= MAX_WATTS else None,
    )


@dataclass(frozen=True, slots=True)
class Energy:
    """Counters by zone: microjoules so far, and where each starts again."""

    zones: tuple[tuple[str, int, int], ...] = ()

    def joules_since(self, earlier: Energy) -> float | None:
        """None where the two do not know the same zones."""
        if not self.zones or [z[0] for z in self.zones] != [z[0] for z in earlier.zones]:
            return None
        moved = 0
        for (_, now, most), (_, before, _) in zip(self.zones, earlier.zones, strict=True):
            moved += now - before if now >= before else now - before + most
        return moved / 1e6


def read_energy(folder: Path = POWERCAP) -> Energy:
    """The whole system's counter where there is one, else those of all packages. Often for root only."""
    zones: dict[str, tuple[str, int, int]] = {}
    for zone in _folders(folder):
        name = _text(zone / "name")
        used, most = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        # The same counters appear once more under intel-rapl-mmio.
        if used is not None and (name == "psys" or name.startswith("package")):
            zones.setdefault(name, (name, int(used), int(most or 0)))
    if "psys" in zones:
        return Energy((zones["psys"],))
    return Energy(tuple(sorted(zones.values())))


def _share(supply: Path) -> float | None:
    percent = _number(supply / "capacity")
    return None if percent is None else min(max(percent / 100.0, 0.0), 1.0)


def _size(supply: Path) -> float:
    """What the battery's share weighs beside those of others; hardly anything where it does not say."""
    full = _number(supply / "energy_full")
    return full if full is not None and 0.0 < full <= _MAX_ENERGY_UWH else 1.0


def _watts(supply: Path) -> float:
    power = _number(supply / "power_now")
    if power is not None:
        return abs(power) / 1e6
    current, voltage = _number(supply / "current_now"), _number(supply / "voltage_now")
    return 0.0 if current is None or voltage is None else abs(current * voltage) / 1e12


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> float | None:
    try:
        number = float(_text(file))
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= _MAX_NUMBER else None
