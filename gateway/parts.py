"""The parts of one running gateway, as requests find them. `gateway.app` puts them together."""

from dataclasses import dataclass

from gateway.config.settings import Settings
from gateway.engine.client import EngineClient
from gateway.identity.background import BackgroundRules
from gateway.identity.callers import Callers
from gateway.identity.missing_users import MissingUserDetector
from gateway.pricing.cost_model import CostModel
from gateway.proxy.waiting_room import WaitingRoom
from gateway.slicing.circuit_breaker import SliceCircuitBreaker
from gateway.slicing.planner import Slicer
from gateway.storage.keys_file import KeysFile
from gateway.telemetry.hub import Telemetry
from gateway.tokenizers.engine import BoundedTokenizer


@dataclass
class Parts:
    """A change at run time replaces `settings` and what is made of them alone, and tells the others; a request looks
    once."""

    settings: Settings
    keys_file: KeysFile
    callers: Callers
    background: BackgroundRules
    unnamed: MissingUserDetector
    cost_model: CostModel
    waiting: WaitingRoom
    upstream: EngineClient
    telemetry: Telemetry
    tokenizer: BoundedTokenizer | None
    slicer: Slicer | None
    slice_guard: SliceCircuitBreaker
    # As the engine states them, once it has been found: its longest prompt, and the model and version that it is.
    max_model_len: int | None = None
    engine: str | None = None
