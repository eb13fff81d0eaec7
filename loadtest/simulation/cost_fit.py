"""The gateway's cost profile of a simulated machine: what its operator would have measured on it."""

from gateway.pricing.profile import Profile
from loadtest.spark.engine import prefill_alone
from loadtest.spark.profile import EngineProfile

PROMPTS = (256, 1024, 2048, 4096, 8192, 16_384, 25_000)
SEQUENCES = (1, 2, 5, 10, 25, 50, 100, 200)
CONTEXT = 4500  # tokens that a decoding sequence reads
MARGINAL = (10, 16)  # sequences between which one more is priced


def cost_profile(machine: EngineProfile) -> Profile:
    """c + a n + b n² by least squares of the relative error over PROMPTS; decode steps as they are."""
    import numpy as np

    prompts = np.array(PROMPTS, dtype=float)
    seconds = np.array([prefill_alone(machine, tokens) for tokens in PROMPTS])
    columns = np.stack([np.ones_like(prompts), prompts, prompts**2], axis=1) / seconds[:, None]
    c, a, b = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)[0]

    def step(sequences: int) -> float:
        return machine.step_s(machine.mixed_work(decoding=sequences, context=CONTEXT * sequences))

    few, many = MARGINAL
    return Profile(
        c_s=max(0.0, float(c)),
        a_s_per_token=max(0.0, float(a)),
        b_s_per_token2=max(0.0, float(b)),
        decode_s_per_token=(step(many) - step(few)) / (many - few),
        decode_step_s={sequences: round(step(sequences), 4) for sequences in SEQUENCES},
    )
