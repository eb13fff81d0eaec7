"""Audio requests: the multipart form is read as far as needed, and durations are estimated from bytes."""

import io
import wave

import httpx
import pytest

from gateway.api.audio import BYTES_PER_SECOND, TRANSCRIPTION, TRANSLATION
from gateway.api.base import InferenceRequest
from gateway.pricing.prompt import PromptSize


def recording(seconds: float, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate)
        wav.writeframes(bytes(int(2 * rate * seconds)))
    return file.getvalue()


def parse(file: bytes, name: str = "a.wav", **fields: str) -> InferenceRequest:
    form = httpx.Request("POST", "http://x", files={"file": (name, file)}, data=fields)
    request = TRANSCRIPTION.parse(form.read(), form.headers["content-type"].encode())
    assert request.body == form.content
    return request


def test_a_wav_file_says_how_long_it_is() -> None:
    (prompt,) = parse(recording(10)).prompts
    assert prompt.size.tokens == pytest.approx(500, abs=1)
    (prompt,) = parse(recording(10, rate=48000)).prompts
    assert prompt.size.tokens == pytest.approx(500, abs=1)


@pytest.mark.parametrize("head", [b"", b"RIFF", b"RIFF----WAVEfmt " + bytes(12) + b"\xff\xff\xff\xff", b"ID3"])
def test_duration_of_other_formats_is_estimated_from_bytes(head: bytes) -> None:
    (prompt,) = parse(head + bytes(10 * BYTES_PER_SECOND - len(head)), "a.mp3").prompts
    assert prompt.size == PromptSize(tokens=500)


def test_each_30_second_window_takes_a_seat() -> None:
    assert [parse(recording(seconds)).seats for seconds in (0, 29, 31, 89)] == [1, 1, 2, 3]


def test_form_fields_are_read() -> None:
    request = parse(b"x\r\n--x", model="m", stream="true", prompt="abc", max_completion_tokens="5", user="ann")
    assert (request.model, request.stream, request.max_tokens, request.user) == ("m", True, 5, "ann")
    (prompt,) = request.prompts
    assert prompt.size == PromptSize(words=3, tokens=1)
    assert [parse(b"", stream=each).stream for each in ("True", "1", "false", "0", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_file_named_like_a_field_is_not_taken_for_the_field() -> None:
    body = b'--x\r\ncontent-disposition: form-data; filename="model"; name="file"\r\n\r\n' + bytes(8) + b"\r\n--x--"
    request = TRANSCRIPTION.parse(body, b"multipart/form-data; boundary=x")
    assert request.model is None
    assert request.prompts[0].size == PromptSize(tokens=1)


@pytest.mark.parametrize("content_type", [b"", b"application/json", b"multipart/form-data"])
def test_a_body_that_is_not_a_form_is_priced_as_a_recording(content_type: bytes) -> None:
    (prompt,) = TRANSLATION.parse(bytes(BYTES_PER_SECOND), content_type).prompts
    assert prompt.size == PromptSize(tokens=50)


@pytest.mark.parametrize("body", [b"", b"--x", b"--x--", b"--x\r\n--x--", b"\xff", b'--x\r\nname="file"\r\n--x--'])
def test_a_broken_form_is_left_for_the_engine_to_refuse(body: bytes) -> None:
    assert TRANSLATION.parse(body, b'multipart/form-data; Boundary="x"').seats == 1
