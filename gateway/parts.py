"""The parts of one running gateway, as requests find them. `gateway.app` puts them together."""

from dataclasses import dataclass

from gateway.callers import Callers
from gateway.cost import CostModel
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.tokenizer import BoundedTokenizer
from gateway.upstream import Upstream
from gateway.waiting import WaitingRoom


@dataclass
class Parts:
    """A change at run time replaces `settings` and `callers`, and tells the others; a request looks once."""

    settings: Settings
    callers: Callers
    cost_model: CostModel
    waiting: WaitingRoom
    upstream: Upstream
    telemetry: Telemetry
    tokenizer: BoundedTokenizer | None
    # As the engine states them, once it has been found: its longest prompt, and the model and version that it is.
    max_model_len: int | None = None
    engine: str | None = None
