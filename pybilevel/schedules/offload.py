"""Saved states in host memory instead of on the device."""

from dataclasses import dataclass

from pybilevel.schedules.base import Schedule
from pybilevel.schedules.plan import Plan


@dataclass(frozen=True)
class Offload:
    """The plan of another schedule, whose saved states lie in the memory of the host (pinned) while they wait.

    For GPUs that hold one step but not the trajectory: `pb.Offload(pb.StoreAll())` recomputes nothing. On a CPU the
    states are in host memory already, and nothing is copied.

    Args:
        schedule: which states are kept.

    Memory: on the device the working state alone; on the host the slots of `schedule`. Time: as `schedule`, and two
    copies of each saved state over the bus, in the order of the stream.

    Raises:
        TypeError: schedule is no schedule.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        if isinstance(self.schedule, type) or not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"Offload(schedule={self.schedule!r}): schedule must be an instance such as pb.StoreAll()"
            )

    def plan(self, steps: int) -> Plan:
        """The plan for `steps` steps. ValueError if steps < 0."""
        return self.schedule.plan(steps)

    def describe(self) -> str:
        """One line in words."""
        return f"{self.schedule.describe()}; kept states lie in host memory"
