"""The text of a keys file: parsing, changing single lines, and reporting errors."""

import json
import re
import secrets
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity.keys import KEY_PATTERN, KEY_PREFIX, Key, KeysError, key_digest, read_keys, with_key, without_key

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.none() | st.integers(min_value=1, max_value=10**6)
keys = st.builds(
    Key,
    digest=digests,
    owner=st.text(min_size=1),
    front_end=st.booleans(),
    admin=st.booleans(),
    priority=st.floats(allow_nan=False, allow_infinity=False),
    weight=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    flow_in_flight=counts,
    flow_queued=counts,
    created=st.text(),
)
comments = st.text(st.characters(exclude_characters="\n", codec="utf-8")).map(lambda text: f"# {text}")


def line(**fields: Any) -> str:
    return json.dumps({"sha256": key_digest("one"), "owner": "ann"} | fields)


@given(st.lists(keys, unique_by=lambda key: key.id))
def test_written_keys_are_read_back(some: list[Key]) -> None:
    text = ""
    for key in some:
        text = with_key(text, key)
    assert read_keys(text) == tuple(some)


@given(
    st.lists(st.one_of(keys, comments, st.just("")), unique_by=lambda item: getattr(item, "id", object())), st.data()
)
def test_a_change_leaves_the_other_lines_alone(items: list[Key | str], data: st.DataObject) -> None:
    """Comments, blank lines, and how somebody has spaced them."""
    lines = [item if isinstance(item, str) else " " + with_key("", item).strip() + "  " for item in items]
    text = "\n".join(lines)
    there = [number for number, item in enumerate(items) if isinstance(item, Key)]
    if not there:
        return
    number = data.draw(st.sampled_from(there))
    gone = items[number]
    assert isinstance(gone, Key)
    without = without_key(text, gone.id)
    assert without == "\n".join(lines[:number] + lines[number + 1 :])
    assert with_key(without, gone).removesuffix(with_key("", gone)).rstrip("\n") == without.rstrip("\n")


def test_a_file_without_its_last_newline_can_be_added_to() -> None:
    first, second = (Key(digest=key_digest(name), owner=name) for name in ("one", "two"))
    assert read_keys(with_key(with_key("", first).rstrip("\n"), second)) == (first, second)


def test_the_owner_comes_first_in_a_line() -> None:
    text = with_key("", Key(digest=key_digest("one"), owner="Jörg", front_end=True))
    assert re.match(r'\{"sha256": "[0-9a-f]{64}", "owner": "Jörg", "front_end": true\}\n', text)


def test_a_key_cannot_be_added_twice() -> None:
    key = Key(digest=key_digest("one"), owner="ann")
    with pytest.raises(KeysError, match=f"{key.id} is there twice"):
        with_key(with_key("", key), key)
    with pytest.raises(KeysError, match=f"line 3: the key {key.id} is there twice"):
        read_keys(line() + "\n\n" + line(owner="ben"))


@pytest.mark.parametrize("fields", [{"weight": inf}, {"priority": nan}, {"flow_queued": 0}, {"owner": ""}])
def test_invalid_entries_are_not_written(fields: dict[str, Any]) -> None:
    with pytest.raises(KeysError, match="line 1"):
        with_key("", Key(**{"digest": key_digest("one"), "owner": "ann"} | fields))


def test_removing_an_unknown_key_is_an_error() -> None:
    with pytest.raises(KeysError, match="no key 00000000; `fairlane keys list`"):
        without_key(line(), "00000000")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (line(front_ent=True), "unknown field front_ent: did you mean front_end?"),
        (line(zzz=True), "unknown field zzz: there is front_end, admin"),
        (line(weight=0), "`float` > 0"),
        (line(flow_in_flight=0), "`int` >= 1"),
        (line(sha256="00"), "sha256"),
        (line(owner=""), "owner"),
        (line(front_end="yes"), "front_end"),
        ('{"owner": "ann"}', "missing required field `sha256`"),
        ("[]", "Expected `object`"),
        ("fl-somebody-pasted-a-key", "not valid JSON"),
        (line() + line(), "not valid JSON"),
    ],
)
def test_errors_name_the_line(wrong: str, says: str) -> None:
    with pytest.raises(KeysError) as error:
        read_keys(f"# a comment\n\n{wrong}\n")
    assert str(error.value).startswith("line 3: ")
    assert says in str(error.value)


def test_errors_do_not_quote_the_line() -> None:
    with pytest.raises(KeysError) as error:
        read_keys("fl-somebody-pasted-a-key")
    assert "pasted" not in str(error.value)


def test_a_key_can_be_told_from_other_text() -> None:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    assert KEY_PATTERN.search(f"Bearer {key}".encode())
    assert not KEY_PATTERN.search(b"a-fl-oor lamp, or fl-uffy")
