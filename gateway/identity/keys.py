"""API keys: what each may do, and how a file keeps them.

The file has a line of JSON for each key. Blank lines, and lines that begin with #, are for people. A change adds a line
or takes one out, and leaves the others as they are:

    # the front end in the meeting room
    {"sha256": "3f2a91bc...", "owner": "open-webui", "front_end": true, "created": "2026-01-31"}
    {"sha256": "9ae04711...", "owner": "ann", "weight": 2.0, "flow_in_flight": 4, "created": "2026-02-01"}

Only a key's digest is kept. A key is 32 random bytes, which nobody guesses however fast they hash, so a plain SHA-256
is enough: what is slow on purpose, as bcrypt is, protects passwords that people have thought of. How the digest begins
is the key's public name, its id.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated

import msgspec

# 32 random bytes in base64url, behind what lets people and secret scanners see whose key it is.
KEY_PREFIX = "fl-"
KEY_PATTERN = re.compile(rb"fl-[A-Za-z0-9_-]{43}")
ID_LENGTH = 8

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class KeysError(ValueError):
    """What is wrong with a keys file: which line, and what to do."""


class Rights(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What somebody may do.

    front_end       may name its users
    admin           sees everybody's place in the queue
    priority        most seconds of head start that it may ask for
    weight          of each flow that it asks for: its own, or its users'
    flow_in_flight  requests of each such flow in the engine; None is what holds for all
    flow_queued     requests of each such flow that may wait; None is what holds for all
    """

    front_end: bool = False
    admin: bool = False
    priority: float = 0.0
    weight: _Positive = 1.0
    flow_in_flight: _Count | None = None
    flow_queued: _Count | None = None


class Key(Rights, frozen=True, kw_only=True, rename={"digest": "sha256"}):
    """An API key as the gateway keeps it: its digest, and whose turn a request with it takes."""

    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    owner: Annotated[str, msgspec.Meta(min_length=1)]
    created: str = ""

    @property
    def id(self) -> str:
        return self.digest[:ID_LENGTH]


def key_digest(key: str | bytes) -> str:
    return hashlib.sha256(key if isinstance(key, bytes) else key.encode()).hexdigest()


def read_keys(text: str) -> tuple[Key, ...]:
    """The keys of a file. Raises KeysError."""
    keys: dict[str, Key] = {}
    for number, line in _entries(text):
        key = _key(number, line)
        if keys.setdefault(key.id, key) is not key:
            raise KeysError(f"line {number}: the key {key.id} is there twice; take one of the lines out")
    return tuple(keys.values())


def with_key(text: str, key: Key) -> str:
    """The file with one key more. Raises KeysError if it is there, and where the file could then not be read."""
    if text and not text.endswith("\n"):
        text += "\n"
    # What people look for comes first.
    fields = {"sha256": key.digest, "owner": key.owner} | msgspec.to_builtins(key)
    text += json.dumps(fields, ensure_ascii=False) + "\n"
    read_keys(text)
    return text


def without_key(text: str, key_id: str) -> str:
    """The file without this key. Raises KeysError if it is not there."""
    for number, line in _entries(text):
        if _key(number, line).id == key_id:
            lines = text.split("\n")
            del lines[number - 1]
            return "\n".join(lines)
    raise KeysError(f"there is no key {key_id}; `fairlane keys list` shows those there are")


def _entries(text: str) -> Iterator[tuple[int, str]]:
    # By newline alone: `splitlines` would also break at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _key(number: int, line: str) -> Key:
    try:
        return msgspec.json.decode(line, type=Key)
    except msgspec.ValidationError as error:
        unknown = re.search("unknown field `(.*)`", str(error))
        if not unknown:
            raise KeysError(f"line {number}: {error}; correct it, or take the line out") from error
        known = msgspec.json.schema_components([Key])[1]["Key"]["properties"]
        near = get_close_matches(unknown[1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
        raise KeysError(f"line {number}: unknown field {unknown[1]}: {hint}") from error
    except msgspec.DecodeError as error:
        raise KeysError(
            f"line {number}: not valid JSON ({error}); a line is one key, as `fairlane keys add` writes it, or a "
            "comment that begins with #"
        ) from error
