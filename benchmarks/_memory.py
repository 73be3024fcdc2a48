"""Peak resident memory of processes, from Linux' /proc."""

from contextlib import suppress
from pathlib import Path


def reset(processes: list[int]) -> None:
    """Begin to look for the peak anew, where that is allowed."""
    for one in processes:
        with suppress(OSError):
            Path(f"/proc/{one}/clear_refs").write_text("5")


def peak(processes: list[int]) -> int:
    """MiB at the peak since, weights included, summed over the processes."""
    return sum(_high_water(one) for one in processes) // 1024


def _high_water(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    return 0


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found
