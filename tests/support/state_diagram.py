"""The life of a job, drawn into docs/architecture.md from the table in gateway/scheduling/transitions.py.

python tests/support/state_diagram.py    write it, as `make diagram` does
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from gateway.scheduling.transitions import diagram

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
BEGIN, END = "<!-- transitions:begin -->\n", "<!-- transitions:end -->\n"
COMMAND = "make diagram"


def drawn(page: str) -> str:
    """The page with the diagram as the table has it now. ValueError if the page has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks the lines {BEGIN.strip()} and {END.strip()}, in this order")
    return f"{before}{BEGIN}```mermaid\n{diagram()}\n```\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
