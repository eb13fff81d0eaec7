"""The parts of one running gateway, as requests find them. `gateway.app` puts them together."""

from dataclasses import dataclass

from gateway.background import Background
from gateway.callers import Callers
from gateway.cost import CostModel
from gateway.keys_file import KeysFile
from gateway.settings import Settings
from gateway.slice_guard import SliceGuard
from gateway.slicer import Slicer
from gateway.telemetry import Telemetry
from gateway.tokenizer import BoundedTokenizer
from gateway.unnamed import Unnamed
from gateway.upstream import Upstream
from gateway.waiting import WaitingRoom


@dataclass
class Parts:
    """A change at run time replaces `settings` and what is made of them alone, and tells the others; a request looks
    once."""

    settings: Settings
    keys_file: KeysFile
    callers: Callers
    background: Background
    unnamed: Unnamed
    cost_model: CostModel
    waiting: WaitingRoom
    upstream: Upstream
    telemetry: Telemetry
    tokenizer: BoundedTokenizer | None
    slicer: Slicer | None
    slice_guard: SliceGuard
    # As the engine states them, once it has been found: its longest prompt, and the model and version that it is.
    max_model_len: int | None = None
    engine: str | None = None
