"""Who is asking: whose turn a request takes.

A key's owner, else the client's address. A front end (a chat page that serves many people) may name its users by
header or by the body's `user`. From anybody else such a name only subdivides the caller's own share, so that nobody
mints a second share of the machine by inventing users.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from gateway.errors import UnknownKey
from gateway.identity.keys import ID_LENGTH, Key, Rights, key_digest

Network = IPv4Network | IPv6Network

# A name is kept for as long as its user is remembered; a longer one is told apart by its digest.
MAX_NAME = 200


def hashed(flow: str) -> str:
    """A flow's name for logs and spans: the same user looks the same, and is not named."""
    return hashlib.blake2b(flow.encode("utf-8", "replace"), digest_size=6, person=b"fairlane").hexdigest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds the other end of the connection.

    named_user  whom its headers name; whether that counts, `flow` and `subdivision` say
    rights      a key's; of an address, a front end's if its network is one, an admin's if it is this host
    """

    name: str
    named_user: str | None
    rights: Rights

    def flow(self, user: str | None = None) -> str:
        """Whose turn a request takes; `user` is the name in its body."""
        named = self.user(user)
        return f"user:{_bounded(named)}" if named and self.rights.front_end else self.name

    def subdivision(self, user: str | None = None) -> str:
        """Of the caller's own share, the part that a request belongs to; "" for a front end, or if no user is named."""
        named = self.user(user)
        return f"user:{_bounded(named)}" if named and not self.rights.front_end else ""

    def user(self, user: str | None = None) -> str | None:
        """The name that was given, by whomever; a header's goes before the body's."""
        return self.named_user or user or None


class Callers:
    def __init__(
        self,
        keys: Iterable[Key],
        front_ends: Iterable[Network],
        user_headers: Iterable[str],
        *,
        closed: bool = False,
    ) -> None:
        """`closed`: only keys and this host get in, even while there are no keys. Where there are keys it is so."""
        self._keys = {key.id: key for key in keys}
        self._closed = closed or bool(self._keys)
        self._front_ends = tuple(front_ends)
        self._user_headers = tuple(name.lower().encode() for name in user_headers)

    def identify(self, address: str | None, headers: Mapping[bytes, bytes]) -> Caller:
        """Raises UnknownKey where keys are in force, the client is not on loopback, and sent none of them."""
        ip = _ip(address)
        key = self._key(headers)
        if key is not None:
            return Caller(f"key:{key.owner}", self._named_user(headers), key)
        here = ip is not None and ip.is_loopback
        if self._closed and not here:
            raise UnknownKey("Unknown API key. Ask whoever runs this gateway for one, and send it as a Bearer token.")
        rights = Rights(front_end=self._is_front_end(ip), admin=here)
        return Caller(f"address:{ip or address or 'unknown'}", self._named_user(headers), rights)

    def _key(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """The first that is known of the keys that were sent. How long it takes tells nothing of those there are: a
        digest's beginning, by which it is found, cannot be steered towards them, and the rest is compared in constant
        time."""
        for sent in _sent_keys(headers):
            digest = key_digest(sent)
            key = self._keys.get(digest[:ID_LENGTH])
            if key is not None and hmac.compare_digest(key.digest, digest):
                return key
        return None

    def _is_front_end(self, ip: IPv4Address | IPv6Address | None) -> bool:
        return ip is not None and any(ip in network for network in self._front_ends)

    def _named_user(self, headers: Mapping[bytes, bytes]) -> str | None:
        for name in self._user_headers:
            if value := headers.get(name, b"").strip():
                return value.decode("latin-1")
        return None


def _sent_keys(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """As OpenAI's SDK sends it; as Anthropic's does; as OpenAI's does for Azure."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        yield token.strip()
    for name in (b"x-api-key", b"api-key"):
        if key := headers.get(name, b"").strip():
            yield key


def _bounded(name: str) -> str:
    return name if len(name) <= MAX_NAME else hashed(name)


def _ip(address: str | None) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(address or "")
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d.
    return getattr(ip, "ipv4_mapped", None) or ip
