"""Reads the templates of pages, which lie beside the code that fills them in."""

from importlib.resources import files


def report_template() -> str:
    return _read("page.html.j2")


def suite_template() -> str:
    return _read("suite.html.j2")


def _read(name: str) -> str:
    return (files("loadtest.report") / name).read_text()
