"""The settings one by one: what each is called and means, and which of them take a restart."""

from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.config.settings import Restart, Settings, Unit


class SettingField(NamedTuple):
    """
    key      dotted, as in `engine.step_tokens`
    restart  it is read once, at start: a change takes a restart
    """

    key: str
    unit: str
    description: str
    restart: bool


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[SettingField]:
    """Every setting, in the order of its table."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield _setting_field(f"{prefix}{name}", field)


def restart_needed(before: Settings, after: Settings) -> list[str]:
    """The settings that changed and are read at start alone, by their keys."""
    values = ((field.key, attrgetter(field.key)) for field in fields() if field.restart)
    return [key for key, value in values if value(before) != value(after)]


def _setting_field(key: str, field: FieldInfo) -> SettingField:
    unit = next((str(item) for item in field.metadata if isinstance(item, Unit)), "")
    restart = any(isinstance(item, Restart) for item in field.metadata)
    return SettingField(key, unit, field.description or "", restart)
