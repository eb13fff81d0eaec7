"""What stands before the engine in a simulation: nobody, a semaphore, or the gateway's admission under a policy.

direct     nobody: vLLM's own line, first come, first served
priority   nobody, and vLLM's priority scheduling, the shortest prompt first
semaphore  a first-in-first-out semaphore over whole requests, as many proxies have it; `seats` of them
POLICY     the gateway
"""

from dataclasses import asdict, dataclass
from math import inf
from typing import Literal

from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import Slicing
from loadtest.results.records import Record
from loadtest.simulation.pricing import check_pricing, cost_model
from loadtest.simulation.simulation import Options, Simulation
from loadtest.spark.engine import Engine
from loadtest.spark.profile import EngineProfile
from loadtest.workloads.plan import Plan
from policies import find, names
from policies.fifo import Fifo

WITHOUT_GATEWAY = ("direct", "priority", "semaphore")

NO_LIMIT = 1 << 40
DEFAULT_LIMITS = Limits()
DEFAULT_SLICING = Slicing()


def policy_names() -> list[str]:
    return names()


def check_policy(name: str) -> None:
    """Raises ValueError, which names those there are."""
    find(name)


def deployments() -> list[str]:
    return [*WITHOUT_GATEWAY, *names()]


@dataclass(frozen=True)
class Deployment:
    """`cost` is what the gateway is told of the machine, `pricing` who prices by it (`loadtest.simulation.pricing`);
    `limits`, `queue_timeout` and `slicing` are the gateway's, too, and `seats` the semaphore's. Slices need an engine
    that has a prefix cache; on others there are none.

    Raises ValueError for an unknown name.
    """

    name: str
    cost: Profile | None = None
    limits: Limits = DEFAULT_LIMITS
    queue_timeout: float = inf
    seats: int = 8
    pricing: str = "learned"
    slicing: Slicing | None = DEFAULT_SLICING

    def __post_init__(self) -> None:
        if self.name not in WITHOUT_GATEWAY:
            find(self.name)
        if self.cost is None and self.name not in ("direct", "priority"):
            raise ValueError(f"{self.name} needs to know what work costs")
        check_pricing(self.pricing)

    @property
    def title(self) -> str:
        """What it is called in the figures."""
        if self.name in WITHOUT_GATEWAY or self.pricing == "learned":
            return self.name
        return f"{self.name}, {self.pricing}"

    def simulate(self, plan: Plan, machine: EngineProfile, *, seed: int = 0, noise: float = 0.0) -> list[Record]:
        if self.name == "priority":
            machine = machine.with_flags(scheduling_policy="priority")
        engine = Engine(machine, seed=seed, noise=noise)
        match self.name:
            case "direct":
                simulation = Simulation(engine)
            case "priority":
                simulation = Simulation(engine, options=Options(priority=lambda prompt_tokens: prompt_tokens))
            case "semaphore":
                limits = Limits(NO_LIMIT, NO_LIMIT, NO_LIMIT, self.seats)
                simulation = Simulation(engine, Core.create(self._cost_model(machine), Fifo(), limits))
            case policy:
                counts: Literal["long", "all"] = "all" if self.pricing == "true" else "long"
                options = Options(queue_timeout=self.queue_timeout, counts=counts)
                simulation = Simulation(engine, self._core(policy, machine), options)
        return simulation.run(plan)

    def _core(self, policy: str, machine: EngineProfile) -> Core:
        shares_steps = machine.long_prefill_token_threshold > 0
        cost_model = self._cost_model(machine)
        return Core.create(cost_model, find(policy)(), self.limits, self.slicing, shares_steps=shares_steps)

    def _cost_model(self, machine: EngineProfile) -> CostModel:
        assert self.cost is not None
        return cost_model(self.pricing, self.cost, machine)

    def settings(self) -> dict[str, str]:
        """What else it takes to have its figures again."""
        match self.name:
            case "direct" | "priority":
                return {}
            case "semaphore":
                return {"seats": str(self.seats)}
        slicing = _written(asdict(self.slicing)) if self.slicing else "off"
        return {"limits": _written(asdict(self.limits)), "pricing": self.pricing, "slicing": slicing}


def _written(values: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
