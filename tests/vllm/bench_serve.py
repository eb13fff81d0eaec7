"""`vllm bench serve`, as often as wanted: of each line of arguments, a JSON list, what it measured, a JSON object.

Run it with the Python of vLLM's own environment. One process, for vLLM takes longer to load than such a run.
"""

import argparse
import asyncio
import importlib
import json
import sys
from contextlib import redirect_stdout
from typing import Any

serve: Any = importlib.import_module("vllm.benchmarks.serve")


def main() -> None:
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            result = asyncio.run(serve.main_async(parser.parse_args(json.loads(line))))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
