"""Options that several of the load tester's commands have."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.simulation.deployment import deployments
from loadtest.simulation.pricing import PRICINGS
from loadtest.workloads.catalogue import PRESETS

BF16 = "gemma-4-26b-bf16"
DEFAULT_SLO = "ttft=2s,tpot=150ms"

Name = Annotated[str, typer.Argument(metavar="WORKLOAD", help="By name or letter; `fairlane load list` has them.")]
Preset = Annotated[str, typer.Argument(metavar="PRESET", help=f"{', '.join(PRESETS)}, or workloads with commas.")]
Machine = Annotated[str, typer.Option("--profile", help="Simulated machine: a shipped name, or a .toml file.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", help=f"Who decides: {', '.join(deployments())}. Repeat it to compare.", show_default="direct"
    ),
]
Pricings = Annotated[
    list[str] | None,
    typer.Option(
        "--pricing",
        help=f"Who prices requests at the gateway: {', '.join(PRICINGS)}. Repeat it to compare.",
        show_default="learned",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the load.", show_default="the published one")]
Users = Annotated[int | None, typer.Option(min=1, help="How many people, in office-mix.")]
Duration = Annotated[float | None, typer.Option(min=1, help="Leave out what would begin after so many seconds.")]
Requests = Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")]
Concurrency = Annotated[int | None, typer.Option(min=0, help="The client's own cap; 0 takes a workload's away.")]
DatasetFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="ShareGPT's JSON, for sharegpt-replay.")
]
SloText = Annotated[str, typer.Option("--slo", help="What a good answer is: first token, from arrival; time a token.")]
Out = Annotated[Path | None, typer.Option(help="Folder for results.jsonl, summary.json and report.html.")]
VllmJson = Annotated[Path | None, typer.Option("--vllm-json", help="Write the figures as `vllm bench serve` does.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A gateway setting of `fairlane config show`.")
]
Seats = Annotated[int, typer.Option(min=1, help="Of the semaphore.")]
Noise = Annotated[float, typer.Option(min=0, help="Sigma of a step's duration, as a share of it.")]
Label = Annotated[str, typer.Option(help="What it is called in the figures.", show_default="the policy")]
BatchedTokens = Annotated[int | None, typer.Option("--max-num-batched-tokens", help="vLLM's flag of that name.")]
NumSeqs = Annotated[int | None, typer.Option("--max-num-seqs", help="vLLM's flag of that name.")]
Threshold = Annotated[int | None, typer.Option("--long-prefill-token-threshold", help="vLLM's flag of that name.")]
Caching = Annotated[
    bool | None,
    typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="vLLM's flag.", show_default="as measured"),
]
CacheTokens = Annotated[int | None, typer.Option(min=16, help="Size of the cache.", show_default="the profile's")]
BaseUrl = Annotated[str, typer.Option(help="Where the server answers, such as http://127.0.0.1:8100/v1.")]
Model = Annotated[str, typer.Option(help="Its name there.", show_default="the first it serves")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token.", show_default=False)]
UserHeader = Annotated[str, typer.Option(help="Header that names each request's user.")]
Speed = Annotated[float, typer.Option(min=0.01, help="That `fairlane sim` runs at; figures are in its seconds.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a request has failed.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Ask vLLM for answers of full length.")]
BytesPerToken = Annotated[float | None, typer.Option(min=0.1, help="Of its tokenizer.", show_default="measured first")]
