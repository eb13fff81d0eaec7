"""Queue policies: who is next. Pure, one file each; see `policies.base` for the seam.

Others come from the entry point group `fairlane.policies` of whatever is installed; docs/policies.md says how.
"""

from collections.abc import Callable
from importlib.metadata import entry_points

from policies.base import Policy
from policies.deadline import Deadline
from policies.drr import Drr
from policies.fair import Fair
from policies.fifo import Fifo
from policies.shortest import Shortest

ENTRY_POINTS = "fairlane.policies"

POLICIES: dict[str, Callable[[], Policy]] = {
    "fair": Fair,
    "fifo": Fifo,
    "shortest": Shortest,
    "drr": Drr,
    "deadline": Deadline,
}


def names() -> list[str]:
    """Every policy there is: ours, then those of others. Nothing is loaded."""
    return [*POLICIES, *sorted(entry_points(group=ENTRY_POINTS).names - POLICIES.keys())]


def find(name: str) -> Callable[[], Policy]:
    """What makes the policy of that name. ValueError if there is none or if it cannot be loaded.

    Somebody else's policy is loaded only when it is asked for, and none takes the name of one of ours.
    """
    if name in POLICIES:
        return POLICIES[name]
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = entry.load()
        except Exception as error:  # whatever their module does when it is imported
            raise ValueError(f"policy {name!r} cannot be loaded from {entry.value}: {error}") from error
        if not callable(found):
            raise ValueError(f"policy {name!r}: {entry.value} is not a class or a function")
        new_policy: Callable[[], Policy] = found
        return new_policy
    *others, last = names()
    raise ValueError(f"no policy {name!r}: choose {', '.join(others)} or {last}")
