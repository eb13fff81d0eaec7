"""Queue policies: who is next. Pure, one file each; see `policies.base` for the seam."""

from collections.abc import Callable

from policies.base import Policy
from policies.fair import Fair
from policies.fifo import Fifo

POLICIES: dict[str, Callable[[], Policy]] = {
    "fair": Fair,
    "fifo": Fifo,
}
