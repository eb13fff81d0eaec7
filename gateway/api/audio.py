"""`/v1/audio/transcriptions` and `/v1/audio/translations`: a form with a recording in it.

Nothing is decoded, so its length is guessed from its bytes: exactly for a WAV file, which says how many a second has.
The engine cuts it into windows and works on all of them at once, so it takes a seat for each. Its stream has the
windows one after the other, so the first token is that of the first.

API: https://platform.openai.com/docs/api-reference/audio, and vLLM's speech_to_text/transcription/protocol.py.
"""

import re
from math import ceil

from gateway.api.base import Api, InferenceRequest
from gateway.api.conversation import text_prompt
from gateway.api.openai import read
from gateway.pricing.prompt import Prompt, PromptSize

# As Whisper has it: 1500 positions of its encoder for each window of 30 s.
WINDOW = 30.0
TOKENS_PER_SECOND = 50.0

# What speech comes in, if it is no WAV file: 64 kbit/s. Browsers record at half of that, MP3 files have twice.
BYTES_PER_SECOND = 8000

# 48 kHz, two channels, 32 bits. A file that says more is not believed.
MAX_BYTES_PER_SECOND = 384_000

_BOUNDARY = re.compile(rb'boundary="?([^";]+)"?', re.IGNORECASE)
_NAME = re.compile(rb'\bname="?([^";\r\n]*)"?', re.IGNORECASE)


def parse(body: bytes, content_type: bytes = b"") -> InferenceRequest:
    fields = _form(body, content_type)
    seconds = _seconds(fields.get(b"file", b""))
    prompt = text_prompt(fields.get(b"prompt", b"") + fields.get(b"hotwords", b""))
    size = prompt.size.plus(PromptSize(tokens=ceil(seconds * TOKENS_PER_SECOND)))
    limit = fields.get(b"max_completion_tokens", b"")
    return InferenceRequest(
        api="audio",
        body=body,
        model=_text(fields.get(b"model")),
        prompts=(Prompt(size),),
        n=max(1, ceil(seconds / WINDOW)),
        stream=fields.get(b"stream", b"").strip().lower() in (b"true", b"1", b"on", b"yes", b"t", b"y"),
        max_tokens=int(limit) if limit.isdigit() else None,
        user=_text(fields.get(b"user")),
        truncatable=True,
    )


def _form(body: bytes, content_type: bytes) -> dict[bytes, bytes]:
    """The fields of multipart/form-data (RFC 7578), as far as the gateway needs them. What is no form is the engine's
    to refuse, and priced as if it were a recording, should that be wrong."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return {b"file": body}
    fields = {}
    for part in body.split(b"--" + boundary[1].strip())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if name := _NAME.search(head):
            fields[name[1]] = content.removesuffix(b"\r\n")
    return fields


def _seconds(file: bytes) -> float:
    rate = int.from_bytes(file[28:32], "little") if file[:4] == b"RIFF" and file[8:16] == b"WAVEfmt " else 0
    return len(file) / (rate if 0 < rate <= MAX_BYTES_PER_SECOND else BYTES_PER_SECOND)


def _text(field: bytes | None) -> str | None:
    return field.decode("utf-8", "replace") if field else None


TRANSCRIPTION = Api("transcription", parse, read)
TRANSLATION = Api("translation", parse, read)
