from __future__ import annotations

import re
from collections import Counter
from html import escape
from xml.etree import ElementTree as ET

import pytest

from compared import NASTY, results, row, trained
from fedpa.comparison.page import page
from fedpa.comparison.results import Measured


def read(text: str) -> ET.Element:
    """The page as XML; that alone says that every element is closed and everything is escaped."""
    text = text.removeprefix("<!DOCTYPE html>\n")
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    return ET.fromstring(text.replace(script[0], "<script/>"))


@pytest.fixture(scope="module")
def text() -> str:
    return page(results())


def test_every_method_and_what_failed_are_there(text: str) -> None:
    root = read(text)
    rows = {"".join(one.itertext()).strip(): one for one in root.iter("tr") if one.get("data-m")}
    for title in ("two counters", "frozen foundation", "head only", "FedAvg", "FedRAP", "FedPA", NASTY):
        assert any(title in shown for shown in rows), title
    (failed,) = [shown for shown in rows if "FedRAP" in shown]
    assert "failed: loss <nan> | stopped" in failed
    assert "oracle: needs synthetic users" in "".join(root.itertext())
    assert "This is no ranking" in text
    assert "fedpa compare dataset --methods all" in text
    assert escape(NASTY) in text
    assert "<b>bold" not in text


def test_nothing_is_fetched(text: str) -> None:
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"\bsrc=|url\(|@import|<link|fetch\(", text)
    assert "default-src 'none'" in text.replace("&#x27;", "'")


def test_every_figure_has_a_title_a_text_and_both_widths(text: str) -> None:
    root = read(text)
    figures = list(root.iter("figure"))
    assert len(figures) > 6
    for figure in figures:
        caption = figure.find("figcaption")
        assert caption is not None
        drawings = figure.findall("svg")
        assert [(one.get("class") or "").split()[-1] for one in drawings] == ["wide", "phone"]
        for one in drawings:
            assert one.get("role") == "img"
            assert len(one.get("aria-label") or "") > 20
            _, _, width, height = (float(side) for side in (one.get("viewBox") or "").split())
            assert width in (1080, 358)
            for mark in one.iter("path"):
                place = re.fullmatch(r"translate\((\S+) (\S+)\)", mark.get("transform") or "")
                if place:
                    assert 0 <= float(place[1]) <= width
                    assert 0 <= float(place[2]) <= height
    for table in root.iter("table"):
        head, *lines = (sum(int(cell.get("colspan", 1)) for cell in line) for line in table.iter("tr"))
        assert set(lines) == {head}
    assert Counter(figure.get("data-metric") for figure in figures)["gauc"] >= 5


def test_those_who_upload_nothing_stand_apart(text: str) -> None:
    (drawing,) = [
        one for one in read(text).iter("svg")
        if (one.get("class") or "") == "scatter wide" and (one.get("aria-label") or "").startswith("GAUC")
    ]  # fmt: skip
    (apart,) = [one for one in drawing.iter("rect") if one.get("class") == "apart"]
    edge = float(apart.get("x") or 0) + float(apart.get("width") or 0)
    inside = {}
    for group in drawing.iter("g"):
        mark = group.find("path[@transform]")
        if mark is not None:
            inside[(group.findtext("title") or "").split(" ", 1)[1].split(":")[0]] = (
                float((mark.get("transform") or "")[10:].split()[0]) < edge
            )
    assert inside["two counters"]
    assert inside["head only"]
    assert not inside["FedAvg"]
    assert not inside["FedPA"]


def test_numbers_beside_the_figures(text: str) -> None:
    """The table of the figure by history: bins in their order, with the users they hold."""
    (table,) = [one for one in read(text).iter("div") if one.get("aria-label") == "GAUC by training rows of the user"]
    assert [cell.text for cell in table.iter("th")][:3] == ["method", "5-9 (1,234 users)", "10-19 (5 users)"]
    assert [cell.text for cell in table.iter("td")][:2] == ["0.6000", "0.6100"]


def test_a_far_off_method_and_one_without_numbers_are_drawn() -> None:
    far = row("far", "far off", "baseline", metrics={"gauc": Measured(value=9.0, low=8.0, high=10.0)})
    none = row("none", "undefined", "baseline", metrics={"gauc": Measured(value=None)}, differences={})
    odd = trained("odd", "odd", "federated", 1.0, by_round=[], by_history={}, by_group={}, cold={"error": "cannot"})
    shown = "".join(read(page(results(far, none, odd))).itertext())
    assert "far off" in shown
    assert "undefined" in shown


def test_nothing_but_failures_still_makes_a_page() -> None:
    made = results()
    task = made.tasks[0].model_copy(update={"rows": [made.tasks[0].rows[4]], "reference": []})
    root = read(page(made.model_copy(update={"tasks": [task]})))
    assert not list(root.iter("figure"))
    assert "failed: loss <nan>" in "".join(root.itertext())
    read(page(made.model_copy(update={"tasks": []})))
