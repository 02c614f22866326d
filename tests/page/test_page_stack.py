"""The page of a real stack: its buttons, a task's life, a killed cell that heals, a BBS that is away for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbs_server.dev.testing import DevStack

LIVE = "#link[data-state=live]"
SECONDS = 30_000

NOTE_WORDS = """
(cell) => {
  const words = document.querySelector(`[data-cell=${cell}] .words`);
  window.said = [];
  new MutationObserver(() => window.said.push(words.textContent)).observe(words, { childList: true });
}
"""
"""Keeps what is said of a cell, for states that may be over before Playwright looks again, every half second."""


@pytest.fixture(scope="module")
def stack_url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stack of three cells. Comes after `browser`, which may skip the test."""
    stack = DevStack(tmp_path_factory.mktemp("stack"), cells=3).up()
    yield f"http://127.0.0.1:{stack.port_base}/"
    stack.remove()


@pytest.fixture
def page(browser: Any, stack_url: str) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.set_default_timeout(SECONDS)
    problems: list[str] = []
    tab.on("pageerror", lambda problem: problems.append(str(problem)))
    tab.goto(stack_url)
    tab.wait_for_selector(LIVE)
    yield tab
    tab.close()
    assert problems == []


def test_a_task_of_the_page_s_button_runs_to_its_result(page: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    page.get_by_role("button", name="Run a task").click()
    script = f"while ! test -e '{seen}'; do sleep 0.1; done; echo seen by the page > result"
    page.get_by_label("Shell script").fill(script)
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector("#details .facts >> text=running")
    seen.touch()
    page.wait_for_selector("#details .facts >> text=seen by the page")
    page.wait_for_selector("#details .past li >> nth=2")  # its events may come after its result
    past = page.locator("#details .past li").all_inner_texts()
    assert [text.split()[1] for text in reversed(past)][:3] == ["pending", "running", "completed"]
    assert "sh" in page.locator("#details .json").inner_text()
    page.wait_for_selector("#tasks [data-state=completed] .total >> text=1")


def test_a_killed_cell_s_instances_turn_suspect_and_run_elsewhere(page: Any) -> None:
    page.get_by_role("button", name="Desire an app").click()
    page.get_by_label("Process guid").fill("shop")
    page.get_by_label("Instances", exact=True).fill("6")
    page.get_by_role("button", name="Desire", exact=True).click()
    page.wait_for_selector("#details .facts >> text=6 running of 6 desired")
    page.keyboard.press("Escape")
    box = page.locator("[data-cell=cell-2]")
    there = int(box.locator(".total").inner_text())
    assert there > 0, "instances are spread"
    page.evaluate(NOTE_WORDS, "cell-2")
    page.get_by_role("button", name="stop cell-2").click()
    page.wait_for_function(f"() => window.said.includes('{there} suspect')")
    page.wait_for_selector("[data-cell=cell-2] .badge >> text=down")
    page.wait_for_selector("[data-cell=cell-2] .total >> text=/^0$/")
    page.wait_for_function(
        "() => document.querySelector('.chip[data-state=running] b').textContent === '6'"
        " && document.querySelector('.chip[data-state=suspect] b').textContent === '0'"
    )
    events = page.locator("#line button").evaluate_all("buttons => buttons.map((button) => button.title)")
    assert any("suspect · on cell-2" in text for text in events)
    page.get_by_role("button", name="start cell-2").click()
    page.wait_for_selector("[data-cell=cell-2]:not(.absent)")


def test_scaling_and_removing(page: Any) -> None:
    page.locator("#search").fill("shop")
    page.wait_for_selector("#found li >> text=shop")
    page.keyboard.press("Enter")
    page.get_by_label("Instances", exact=True).fill("2")
    page.get_by_role("button", name="Scale").click()
    page.wait_for_selector("#details .facts >> text=2 running of 2 desired")
    page.get_by_role("button", name="Remove", exact=True).click()
    page.wait_for_selector("#details >> text=Not desired any more.")
    page.wait_for_function("() => document.querySelector('.chip[data-state=running] b').textContent === '0'")


def test_a_refusal_is_shown(page: Any) -> None:
    page.get_by_role("button", name="Desire an app").click()
    page.get_by_label("Process guid").fill("not a guid")
    page.get_by_role("button", name="Desire", exact=True).click()
    page.wait_for_selector("#toast >> text=process_guid")


def test_the_page_outlives_its_bbs(page: Any) -> None:
    page.get_by_role("button", name="stop bbs").click()
    page.wait_for_selector("#link[data-state=lost] >> text=no BBS answers")
    page.get_by_role("button", name="start bbs").click()
    page.wait_for_selector(LIVE)
    page.get_by_role("button", name="Run a task").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector("#details .facts >> text=hello from")
