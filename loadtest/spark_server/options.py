"""How the simulated server is started, apart from its engine's flags."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """
    speed                         times as fast as life
    seed, noise                   of the steps' durations
    bytes_per_token               of any text, from 1 to 6
    served_model_name             None: the profile's name
    enable_prompt_tokens_details  whether answers tell what the prefix cache had of their prompts
    enable_per_request_metrics    whether they tell how long they queued, prefilled and decoded
    max_num_queued_reqs           in the engine, running ones too; above, requests are refused with 503
    max_num_queued_tokens         of prompts without an answer yet; when they are so many, requests are refused too
    """

    speed: float = 1.0
    seed: int = 0
    noise: float = 0.1
    bytes_per_token: float = 3.2
    served_model_name: str | None = None
    enable_prompt_tokens_details: bool = True
    enable_per_request_metrics: bool = True
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
