"""A body at the simulated vLLM: read into a type, or refused. Numbers may be strings, as for vLLM."""

import json
import re
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class Refused(Exception):
    """What vLLM would refuse; `kind` and `param` are its error's type and param."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.content: dict[str, Any]
        self.content = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Undecodable(Refused):
    """A body that is no text: FastAPI's own words."""

    def __init__(self) -> None:
        super().__init__(400, "Bad Request", "There was an error parsing the body")
        self.content = {"detail": "There was an error parsing the body"}


def broken(what: str, param: str | None) -> Refused:
    """What pydantic refuses."""
    return Refused(400, HTTPStatus.BAD_REQUEST.phrase, f"1 validation error:\n  {what}", param)


def bad(message: str, param: str | None = None) -> Refused:
    """What vLLM refuses."""
    return Refused(400, "BadRequestError", message, param)


def read(data: bytes, content_type: str | None, type: type[T]) -> T:
    """A body; raises Refused for what is none."""
    if content_type is None or content_type.partition(";")[0].strip().lower() != "application/json":
        raise broken("Unsupported Media Type: Only 'application/json' is allowed", None)
    try:
        return msgspec.json.decode(data, type=type, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _read_slowly(data, type)


def _read_slowly(data: bytes, type: type[T]) -> T:
    """By the parser that vLLM uses, which says where it stopped, and takes NaN and half a surrogate pair."""
    try:
        value = json.loads(data) if data else None
    except json.JSONDecodeError as error:
        raise broken(f"JSON decode error: {error.msg}", f"body.{error.pos}") from None
    except (UnicodeError, RecursionError):
        raise Undecodable from None
    if value is None:
        raise broken("Field required", "body")
    try:
        return msgspec.convert(value, type, strict=False)
    except msgspec.ValidationError as error:
        raise broken(str(error), _place(str(error))) from None


def _place(said: str) -> str:
    """pydantic's name of the place that msgspec complains of."""
    path = re.search(r"at `\$(.*)`$", said)
    field = re.search(r"missing required field `(\w+)`", said)
    names = re.findall(r"\w+", path[1] if path else "") + ([field[1]] if field else [])
    return ".".join(["body", *names])
