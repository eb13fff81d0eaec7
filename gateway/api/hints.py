"""What a client may wish for by header.

x-fairlane-deadline   seconds from now by which the first token should be there; else a quick 429
x-fairlane-priority   seconds of head start: negative to let others go first; positive only as far as the key allows
x-session-id          a conversation or an agent, which shares its user's part with the user's others; Open WebUI
                      says x-openwebui-chat-id
"""

from dataclasses import dataclass
from math import inf, isfinite

from gateway.errors import BadRequest

# A day each way is more than anybody waits, and keeps tags and keys within what floats tell apart.
MAX_PRIORITY = 86400.0
MAX_SESSION = 200


@dataclass(frozen=True, slots=True)
class SchedulingHints:
    deadline: float = inf
    priority: float = 0.0
    session: str = ""


def read_hints(headers: dict[bytes, bytes]) -> SchedulingHints:
    """Raises BadRequest for what is no number."""
    deadline = _seconds(headers, b"x-fairlane-deadline", inf)
    if deadline <= 0:
        raise BadRequest("x-fairlane-deadline must be positive: seconds from now", param="x-fairlane-deadline")
    priority = _seconds(headers, b"x-fairlane-priority", 0.0)
    session = headers.get(b"x-session-id") or headers.get(b"x-openwebui-chat-id", b"")
    return SchedulingHints(
        deadline, max(-MAX_PRIORITY, min(priority, MAX_PRIORITY)), session.decode("latin-1")[:MAX_SESSION]
    )


def _seconds(headers: dict[bytes, bytes], name: bytes, default: float) -> float:
    if name not in headers:
        return default
    try:
        seconds = float(headers[name])
    except ValueError:
        seconds = inf
    if not isfinite(seconds):
        raise BadRequest(f"{name.decode()} must be a number of seconds", param=name.decode())
    return seconds
