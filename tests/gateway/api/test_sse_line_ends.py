"""An event is relayed as soon as it has ended, whichever line ends its server writes."""

import pytest

from gateway.api.openai import read
from gateway.api.sse import EventStream

TOKEN = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}'


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_an_event_is_relayed_once_its_blank_line_is_there(end: bytes) -> None:
    stream = EventStream(read, drop_usage=True)
    assert stream.feed(TOKEN + end[:-1]) == b""
    assert stream.feed(end[-1:] + TOKEN) == TOKEN + end
    assert stream.first_token
    assert stream.feed(end) == TOKEN + end
    assert stream.end() == b""
