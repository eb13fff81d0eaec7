"""Who is asking: whose turn a request takes.

A key's owner, else the client's address. A front end (a chat page that serves many people) may name its users by
header or by the body's `user`; from anybody else such a name counts for nothing, so that nobody mints a second
share of the machine by inventing users.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from gateway.errors import UnknownKey

Network = IPv4Network | IPv6Network

# A name is kept for as long as its user is remembered; a longer one is told apart by its digest.
MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the gateway keeps it: only its digest."""

    digest: bytes
    owner: str
    front_end: bool = False
    admin: bool = False
    priority: float = 0.0


def key_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def hashed(flow: str) -> str:
    """A flow's name for logs and spans: the same user looks the same, and is not named."""
    return hashlib.blake2b(flow.encode("utf-8", "replace"), digest_size=6, person=b"fairlane").hexdigest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds the other end of the connection.

    front_end  may name its users
    admin      may see everybody's place in the queue: a key that says so, and whoever sits at this host
    priority   most seconds of head start that it may ask for
    """

    name: str
    front_end: bool
    named_user: str | None
    admin: bool = False
    priority: float = 0.0

    def flow(self, user: str | None = None) -> str:
        """Whose turn a request takes; `user` is the name in its body."""
        named = self.front_end and (self.named_user or user)
        if not named:
            return self.name
        return f"user:{named if len(named) <= MAX_NAME else hashed(named)}"


class Callers:
    def __init__(self, keys: Iterable[Key], front_ends: Iterable[Network], user_headers: Iterable[str]) -> None:
        # Found by digest: a lookup's timing tells nothing of the keys that are there.
        self._keys = {key.digest: key for key in keys}
        self._front_ends = tuple(front_ends)
        self._user_headers = tuple(name.lower().encode() for name in user_headers)

    def identify(self, address: str | None, headers: Mapping[bytes, bytes]) -> Caller:
        """Raises UnknownKey where keys are in force, the client is not on loopback, and sent none of them."""
        ip = _ip(address)
        key = self._key(headers)
        if key is not None:
            return Caller(f"key:{key.owner}", key.front_end, self._named_user(headers), key.admin, key.priority)
        here = ip is not None and ip.is_loopback
        if self._keys and not here:
            raise UnknownKey("Unknown API key. Ask whoever runs this gateway for one, and send it as a Bearer token.")
        return Caller(
            f"address:{ip or address or 'unknown'}", self._is_front_end(ip), self._named_user(headers), admin=here
        )

    def _key(self, headers: Mapping[bytes, bytes]) -> Key | None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._keys.get(hashlib.sha256(token.strip()).digest())

    def _is_front_end(self, ip: IPv4Address | IPv6Address | None) -> bool:
        return ip is not None and any(ip in network for network in self._front_ends)

    def _named_user(self, headers: Mapping[bytes, bytes]) -> str | None:
        for name in self._user_headers:
            if value := headers.get(name, b"").strip():
                return value.decode("latin-1")
        return None


def _ip(address: str | None) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(address or "")
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d.
    return getattr(ip, "ipv4_mapped", None) or ip
