"""The pages in a real browser, inside a real Airflow: a click leads where it says; light, dark and narrow."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, FrameLocator, Page, expect, sync_playwright

from airflow_mlops.call import Store
from airflow_mlops.cli.services import Services
from tests.ui.made import history, validated

MODEL, DAG = "shown", "shown.predict"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIETER = ("--disable-component-update", "--disable-sync")
# The contrast of each text with what lies behind it, where it is less than WCAG's AA asks for.
FAINT = """() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const paper = canvas.getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    paper.clearRect(0, 0, 1, 1); paper.fillStyle = color; paper.fillRect(0, 0, 1, 1);
    return [...paper.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => rgba(color).slice(0, 3).map(part => part / 255)
    .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [.2126, .7152, .0722][at], 0);
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return rgba(color)[3] === 255 ? color : behind(element.parentElement);
  };
  const said = (element) => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll('*')].filter(said).flatMap(element => {
    const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
    const ratio = (high + .05) / (low + .05);
    return ratio < 4.5 ? [`${element.textContent.trim()}: ${ratio.toFixed(2)}`] : [];
  });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: the one on PATH, or Debian's where it may be installed."""
    path = shutil.which("chromium")
    if path is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(
                ["apt-get", "-qq", *command], check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
        path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on PATH, and none could be installed: apt-get install chromium")
    # Airflow's pages take their time on a busy machine.
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=[*QUIET, *QUIETER])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run_id(running: Services) -> Iterator[str]:
    """A run that waits, of a DAG that is paused; the model's history says that it has written it."""
    running.wait("dag-processor", lambda: DAG in _dags(running), 120)
    running.airflow("PATCH", f"dags/{DAG}", {"is_paused": True})
    run_id = running.trigger(DAG)
    mlflow = {
        "mlflow_url": f"{running.mlflow_url}/#/experiments/0",
        "report_url": f"{running.mlflow_url}/#/experiments/0/report",
    }
    history(Store(str(running.store)), MODEL, run=f"{DAG}/{run_id}", **mlflow)
    yield run_id
    running.airflow("DELETE", f"dags/{DAG}/dagRuns/{run_id}")
    running.airflow("PATCH", f"dags/{DAG}", {"is_paused": False})


def _dags(running: Services) -> list[str]:
    return [dag["dag_id"] for dag in running.airflow("GET", "dags?limit=100")["dags"]]


@pytest.fixture(params=[("light", 1280), ("dark", 1280), ("light", 400)], ids=["light", "dark", "narrow"])
def look(request: pytest.FixtureRequest, browser: Browser) -> Iterator[BrowserContext]:
    """A window of the browser, in each of the ways in which the pages are seen."""
    theme, width = request.param
    context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
    context.set_default_timeout(60_000)
    yield context
    context.close()


def _inside(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title=MLOps]")


def _frame(page: Page) -> Any:
    (frame,) = page.main_frame.child_frames
    return frame


def _good_to_read(page: Page) -> None:
    frame = _frame(page)
    assert frame.evaluate(FAINT) == []
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("document.documentElement.classList.contains('dark')")
    assert frame.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert dark == page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def test_from_the_menu_to_the_model_to_its_run(
    running: Services, run_id: str, look: BrowserContext, tmp_path: Path
) -> None:
    page = look.new_page()
    page.goto(running.airflow_url)
    page.get_by_role("link", name="MLOps").click()
    inside = _inside(page)
    row = inside.get_by_role("row").filter(has_text=MODEL).filter(has_text="Version 2")
    expect(row).to_contain_text("promotion")
    expect(row).to_contain_text("drift")
    page.screenshot(path=tmp_path / "models.png")
    _good_to_read(page)

    inside.get_by_role("link", name=MODEL, exact=True).click()
    expect(inside.get_by_role("heading", name=MODEL)).to_be_visible()
    expect(inside.get_by_role("row").filter(has_text="retrain request: answered")).to_be_visible()
    page.wait_for_url(f"**/plugin/mlops/mlops/models/{MODEL}")
    page.screenshot(path=tmp_path / "model.png", full_page=True)
    _good_to_read(page)

    with look.expect_page() as opened:
        inside.get_by_role("link", name="Drift report").first.click()
    opened.value.wait_for_url(f"{running.mlflow_url}/**")
    assert opened.value.evaluate("window.opener") is None

    inside.get_by_role("link", name="Airflow run").last.click()
    page.wait_for_url(f"**/dags/{DAG}/runs/**")
    expect(page.get_by_text(run_id).first).to_be_visible()
    page.screenshot(path=tmp_path / "run.png")


def test_a_dag_has_a_tab_with_its_model(running: Services, run_id: str, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{running.airflow_url}/dags/{DAG}")
    page.get_by_role("link", name="MLOps").last.click()
    expect(_inside(page).get_by_role("heading", name=MODEL)).to_be_visible()
    page.screenshot(path=tmp_path / "tab.png")
    _inside(page).get_by_role("link", name="All models").click()
    expect(_inside(page).get_by_role("heading", name="Models")).to_be_visible()
    page.close()


def test_a_validation_report_is_good_to_read(
    running: Services, run_id: str, look: BrowserContext, tmp_path: Path
) -> None:
    identity = validated(Store(str(running.store)), f"{DAG}/{run_id}")
    page = look.new_page()
    page.goto(f"{running.airflow_url}/mlops/dags/{DAG}/validations/{identity}")
    expect(page.get_by_role("heading", name="Validation of toy, window 2024-01")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="amount >= -2")).to_contain_text("goes down to")
    page.screenshot(path=tmp_path / "validation.png", full_page=True)
    assert page.evaluate(FAINT) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
