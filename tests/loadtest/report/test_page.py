"""The HTML report of a comparison."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from loadtest.report import page as report_page
from loadtest.report.comparison import Cell
from loadtest.report.page import change, unbroken
from loadtest.results.figures import Figure
from loadtest.results.groups import Group
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Lag, Measurement, row, summarize
from loadtest.storage.templates import report_template
from loadtest.workloads.closed_loops import ClosedLoop
from loadtest.workloads.plan import Plan, Point, Request
from loadtest.workloads.workload import Options
from tests.support.repository import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert('$x_1$ & \"me\"')</script>"


def office(
    policy: str = "direct",
    *,
    requests: int = 60,
    slow: float = 1.0,
    seed: int = 1,
    fail: int = 0,
    told: bool = True,
    users: Sequence[str] = ("ada", "ben", "cem"),
    **about: Any,
) -> Result:
    """Questions and every tenth a document, a second apart, with waits by lot; `fail` of them are turned away."""
    random = Random(seed)
    records = []
    for number in range(requests):
        long = number % 10 == 9
        kind, tokens = ("document", 25_000) if long else ("question", 300)
        request = Request(float(number), users[number % len(users)], kind, tokens, 21)
        record = Record(request, number, sent=float(number), prompt_tokens=tokens)
        if number < fail:
            record.outcome, record.ended = Outcome.REJECTED, float(number)
        else:
            wait = slow * random.expovariate(0.5) + (30 if long else 0.2)
            record.outcome, record.output_tokens = Outcome.COMPLETED, 21
            record.tokens = [number + wait + 0.1 * token for token in range(21)]
            record.queue = wait - 0.1 if told else None
        records.append(record)
    defaults = {"workload": "office", "clock": "virtual", "policy": policy, "profile": "gemma-4-26b-bf16", "seed": seed}
    summary = summarize(
        msgspec.convert({**defaults, **about}, About),
        Measurement(Plan(tuple(record.request for record in records)), records, alone=lambda tokens: tokens / 3000),
    )
    return Result(policy, summary, tuple(map(row, records)))


def with_points(policy: str, plan: Plan, slow: float = 1.0) -> Result:
    records = []
    for number, request in enumerate(plan.requests):
        wait = slow * (1 + request.prompt_tokens / 5000) * (1 + (request.point or 0))
        record = Record(request, number, 5.0 * number, 5.0 * number, outcome=Outcome.COMPLETED)
        record.prompt_tokens, record.output_tokens = request.prompt_tokens, 5
        record.tokens = [record.scheduled + wait + token / 8 for token in range(5)]
        records.append(record)
    summary = summarize(About("points", 1, "real", policy), Measurement(plan, records, alone=lambda tokens: 1.0))
    return Result(policy, summary, tuple(map(row, records)))


def batches(policy: str = "direct", slow: float = 1.0) -> Result:
    return with_points(policy, ClosedLoop((1024, 25_000), 256, (1, 5, 10)).plan(Options(1)), slow)


def sweep(policy: str = "direct", slow: float = 1.0) -> Result:
    points = tuple(Point(4000, 500, rate=rate) for rate in (0.1, 0.5, 1.0))
    asked = [Request(0.0, "ada", "random", 4000, 5, point=point) for point in range(3) for _ in range(20)]
    return with_points(policy, Plan(tuple(asked), points=points), slow)


LOADS = {
    "one": [[office()]],
    "two": [[office()], [office("fair", slow=0.3)]],
    "two, failing": [[office()], [office("fair", fail=30)]],
    "three, repeated": [
        [office(name, slow=slow, seed=seed) for seed in (1, 2, 3)] for name, slow in zip("abc", (1, 2, 3), strict=True)
    ],
    "untold": [[office(told=False)]],
    "batches": [[batches()]],
    "batches, two": [[batches()], [batches("fair", 0.5)]],
    "sweep": [[sweep()]],
    "sweep, two": [[sweep()], [sweep("fair", 0.5)]],
    "all failed": [[office(requests=30, fail=30)]],
    "nothing": [[office(requests=0)]],
}
every_load = pytest.mark.parametrize("load", LOADS)


class Page(HTMLParser):
    """What a browser would read: the text, the elements, and what refers to what."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        if tag in ("td", "th", "dd", "dt", "p", "li", "div", "h2", "h3"):
            self.handle_data(" ")
        self.texts.setdefault(tag, []).append("")
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in set(self._open) & self.texts.keys():
            self.texts[tag][-1] += data

    def text(self, tag: str) -> list[str]:
        return [re.sub(r"\s+", " ", text).strip() for text in self.texts.get(tag, [])]


def html(groups: Sequence[Group]) -> str:
    return report_page.html(groups, report_template())


@cache
def page_of(load: str) -> str:
    return html(LOADS[load])


def drawings(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.S)


def titles(page: str) -> list[str]:
    return Page(page).text("h3")


# What it says.


def test_the_sentence_comes_first_and_then_the_note_that_it_is_simulated() -> None:
    page = page_of("two")
    body = Page(page).text("body")[0]
    assert body.startswith("With Fairlane (fair) a short question typically waited")
    assert body.index("nothing failed.") < body.index("Simulated: computed with a model of the machine")
    assert body.index("Simulated") < body.index("The figures that matter")
    assert Page(page).tags.index("h1") < Page(page).tags.index("table")


def test_measured_runs_are_not_called_simulated() -> None:
    assert "imulated:" not in html([[office(clock="real", profile="")]])
    both = html([[office()], [office("fair", clock="real", profile="")]])
    assert (
        "Partly simulated: direct computed with a model of the machine (gemma-4-26b-bf16), the rest measured." in both
    )
    assert "not the same clock" in both


def test_the_spark_measurements_are_credited_when_used() -> None:
    credit = "Spark measurements: Django de Vreng"
    assert credit in page_of("one")
    assert "CC-BY-4.0" in page_of("one")
    assert credit not in html([[office(clock="real", profile="")]])


def test_an_invalid_run_is_marked_below_the_sentence() -> None:
    run = office()
    late = msgspec.structs.replace(run.summary, schedule_lag=Lag(1.0, 400.0, 900.0, valid=False), interrupted=3)
    body = Page(html([[Result(run.name, late, run.rows)]])).text("body")[0]
    assert (
        body.index("not valid")
        < body.index("stopped before its end, 3 requests")
        < body.index("Wait for the first word")
    )


def test_the_table_marks_wins_and_losses_alike() -> None:
    for sides, verdict, words in (((1.0, 0.1), "better", "× faster"), ((0.1, 1.0), "worse", "× slower")):
        page = html([[office(slow=sides[0])], [office("fair", slow=sides[1])]])
        found = re.findall(rf'<td class="{verdict}">[^<]*<small><strong>([^<]*)</strong>', page)
        assert any(words in each for each in found)


def test_counts_and_settings_are_on_the_page() -> None:
    text = Page(html([[office(fail=7, note="Users by lot.", provenance={"command": "fairlane load run"})]])).text(
        "body"
    )[0]
    for said in (
        "7 of 60",
        "rejected 7",
        "completed 53",
        "Users by lot.",
        "fairlane load run",
        "first word within 2 s",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("unit", "more", "cell", "words"),
    [
        ("s", False, Cell(1.0, 0.1, (0.1, 0.2), "better"), "10× faster"),
        ("s", False, Cell(1.0, 1.4, (1.2, 1.5), "worse"), "1.4× slower"),
        ("ms", False, Cell(1.0, 1.04, (1.01, 1.1), "worse"), "4 % slower"),
        ("/s", True, Cell(1.0, 0.5, (0.4, 0.6), "worse"), "2.0× less"),
        ("%", False, Cell(0.3, float("inf"), None), "more"),
        ("s", False, Cell(1.0, 1.3, (0.9, 1.5)), "no clear difference"),
        ("s", False, Cell(1.0, 1.001, (0.9, 1.1)), "the same"),
        ("s", False, Cell(float("inf"), float("inf")), ""),
        ("%", False, Cell(0.0, 1.0, (1.0, 1.0)), ""),
        ("s", False, Cell(1.0), ""),
    ],
)
def test_ratios_are_put_into_words(unit: Any, more: bool, cell: Cell, words: str) -> None:
    assert change(Figure("key", "title", "plain", unit, more), cell) == words


def test_a_number_and_its_unit_do_not_break_across_lines() -> None:
    assert unbroken("2.3 s or 10 minutes, 5 % of 3 sides") == "2.3\u00a0s or 10\u00a0minutes, 5\u00a0% of 3 sides"


# Which charts.


def test_an_open_loop_has_its_charts() -> None:
    assert titles(page_of("two")) == [
        "Wait for the first word, short prompts",
        "Wait for the first word, long prompts",
        "Every wait, by when it began: direct",
        "Every wait, by when it began: Fairlane (fair)",
        "Where the time went",
        "Person by person",
        "Words a second, all together",
    ]


def test_the_time_breakdown_is_drawn_only_when_recorded() -> None:
    assert "Where the time went" not in titles(page_of("untold"))


def test_a_sweep_and_batches_have_charts_of_their_own() -> None:
    assert titles(page_of("sweep, two"))[0] == "How fast requests may come"
    assert titles(page_of("batches")) == [
        "Wait for the first word",
        "Words a second, each user",
        "Words a second, all together",
    ]
    assert titles(page_of("batches, two"))[:2] == [
        "Wait for the first word, prompts of 1,024",
        "Wait for the first word, prompts of 25,000",
    ]


# What it is made of.


@every_load
def test_the_same_runs_give_the_same_page(load: str) -> None:
    assert html(LOADS[load]) == page_of(load)


def test_the_page_does_not_depend_on_pythons_hash_seed(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text(
        f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('made', {__file__!r})\n"
        "made = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(made)\n"
        "for load in ('three, repeated', 'all failed'):\n    sys.stdout.write(made.html(made.LOADS[load]))\n"
    )
    pages = {
        subprocess.run(
            [sys.executable, script],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("3", "4")  # which order these names differently
    }
    assert len(pages) == 1


@every_load
def test_the_page_loads_nothing_and_runs_no_script(load: str) -> None:
    page = page_of(load)
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#") or (tag == "a" and value.startswith("https://")), value


@every_load
def test_drawings_are_well_formed_with_unique_ids(load: str) -> None:
    page = page_of(load)
    for each in drawings(page):
        ElementTree.fromstring(each)
        assert "style>" not in each
        assert not re.findall(r"#0[1-6][0-9a-f]{4}\b", each)
    ids = Page(page).ids
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", page)) == set(ids)


def test_names_from_files_are_escaped() -> None:
    hostile = office(HOSTILE, users=(HOSTILE, "ada"), note=HOSTILE, workload=HOSTILE, provenance={HOSTILE: HOSTILE})
    page = html([[hostile], [office("fair", workload=HOSTILE)]])
    assert "<script" not in page
    assert HOSTILE[:15] in unescape(drawings(page)[-2])
    assert escape(HOSTILE, quote=False).split("$")[0] in page
    for each in drawings(page):
        ElementTree.fromstring(each)


def test_drawings_accept_any_letters_and_no_formulas() -> None:
    page = html([[office(users=("寿司", "🙂", "$x_1$"))]])
    assert all(name in drawings(page)[-2] for name in ("寿司", "🙂", "$x_1$"))


def test_the_page_size_is_bounded() -> None:
    groups = [[office(requests=1000)], [office("fair", requests=1000, slow=0.3)]]
    assert len(html(groups).encode()) < 300_000


def test_matplotlib_is_imported_only_to_draw() -> None:
    modules = "page, gallery, comparison, bootstrap, sentence, terminal, vllm_json"
    heavy = {"matplotlib", "numpy", "jinja2"}
    code = f"from loadtest.report import {modules}\nimport sys\nassert not {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# In a browser.

WRAPPER = """<!doctype html><body style="margin:0">
<iframe style="border:0;width:390px;height:844px" srcdoc="{page}"></iframe>
<pre></pre><script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const bottom = selector => page.querySelector(selector).getBoundingClientRect().bottom;
  document.querySelector("pre").textContent = JSON.stringify({{
    width: root.clientWidth, scrolls: root.scrollWidth, sentence: bottom("h1"), origin: bottom(".origin"),
    figures: [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect().width),
  }});
}}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("load", ["two", "hostile"])
def test_the_page_fits_a_phone(load: str, tmp_path: Path) -> None:
    names = ("direct", "fair", "a_name_without_a_break_that_is_far_too_long_for_a_phone", *map(str, range(7)))
    many = [[office(name, slow=9 - len(name) % 9, users=("x" * 80, HOSTILE), note="y" * 300)] for name in names]
    page = html(LOADS["two"] if load == "two" else many)
    wrapper = tmp_path / "phone.html"
    wrapper.write_text(WRAPPER.format(page=escape(page)))
    command = [
        CHROMIUM or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    dom = subprocess.run(
        [*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True, timeout=50, check=True
    ).stdout
    found = json.loads(unescape(dom.partition("<pre>")[2].partition("</pre>")[0]))
    assert found["width"] == 390
    assert found["scrolls"] <= 390
    assert 0 < found["sentence"] < 844
    assert 0 < found["origin"] < 844
    assert all(300 < width <= 390 for width in found["figures"])
