"""The page at / in a real browser before a real service: what people see of it, also when parts of it are gone."""

import os
import signal
import urllib.request
from collections.abc import Callable, Iterator

import psutil
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from deploy.plain import PlainService, serve_plain
from tests.fakes.browser import browser, look, missing

pytestmark = [pytest.mark.slow(seconds=45), pytest.mark.skipif(bool(missing()), reason=missing())]

WAIT_S = 60.0
MODEL = ["--model", "builtin"]
SIZES = ["--kv-memory", "32MiB"]
QUESTION = "What is a list?"


@pytest.fixture(scope="module")
def service() -> Iterator[PlainService]:
    """One prefill and two decode workers; every request is handed over."""
    workers = [
        ["prefill_worker", *MODEL, *SIZES],
        *(["decode_worker", *MODEL, *SIZES, "--worker-id", f"decode-{n}"] for n in (0, 1)),
    ]
    with serve_plain(workers, [*MODEL, "--policy", "cost_always_hand_over"]) as service:
        service.wait_whole()
        yield service


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as driver:
        yield driver


@pytest.fixture
def page(service: PlainService, driver: Chrome) -> Chrome:
    """As who comes for the first time sees it."""
    look(driver, width=1280, height=900)
    driver.get_log("browser")  # of the test before
    driver.get(service.url + "/")
    return driver


def text(page: Chrome, id: str) -> str:
    return str(page.find_element(By.ID, id).text)


def states(page: Chrome) -> dict[str, str]:
    cards = "[...document.querySelectorAll('.worker')]"
    state = "(card) => [card.dataset.id, card.querySelector('.state').textContent]"
    return dict(page.execute_script(f"return {cards}.map({state})"))


def until(page: Chrome, condition: Callable[[], object]) -> None:
    WebDriverWait(page, WAIT_S, poll_frequency=0.1).until(lambda _: condition(), f"{page.page_source[-3000:]}")


def complaints(page: Chrome) -> list[str]:
    """Of the console: errors of the script, and what the policy refused."""
    return [entry["message"] for entry in page.get_log("browser") if entry["source"] != "network"]


def test_workers_a_chat_and_numbers_that_move(page: Chrome) -> None:
    ready = {"prefill-0": "ready", "decode-0": "ready", "decode-1": "ready"}
    until(page, lambda: states(page) == ready)
    assert (text(page, "ready"), text(page, "model"), text(page, "alert")) == ("ready", "builtin", "")
    handoffs = int(text(page, "handoffs"))
    words = page.find_element(By.ID, "words")
    words.send_keys("Tell me", Keys.SHIFT, Keys.ENTER, Keys.SHIFT, "a story.")
    assert words.get_property("value") == "Tell me\na story."
    words.clear()
    watch = "new MutationObserver((all) => { window.parts = (window.parts || 0) + all.length; })"
    page.execute_script(f"{watch}.observe(document.getElementById('log'), {{childList: true, subtree: true}})")
    words.send_keys(QUESTION, Keys.ENTER)
    until(page, lambda: "tokens/s" in text(page, "log") and page.find_element(By.ID, "send").is_enabled())
    said = page.find_element(By.CSS_SELECTOR, "#log .answer").text
    assert "list" in said and len(said.split()) > 5
    assert page.execute_script("return window.parts") > 5, "the words came one by one"
    until(page, lambda: int(text(page, "handoffs")) > handoffs)
    until(page, lambda: text(page, "ttft").endswith("s") and text(page, "itl").endswith("s"))
    words.send_keys("And then?", Keys.ENTER)  # with all before it this is a prompt of some pages
    until(page, lambda: "decode-" in text(page, "tree") and "tokens" in text(page, "tree"))
    assert complaints(page) == []


def test_requests_show_while_they_run_and_stop_when_told(page: Chrome) -> None:
    until(page, lambda: text(page, "ready") == "ready")
    page.find_element(By.ID, "most").clear()
    page.find_element(By.ID, "words").send_keys("Go on for ever.")
    page.execute_script(
        "const ask = window.fetch; window.fetch = (url, options) => ask(url, options && options.body ? "
        "{...options, body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true})} : options)"
    )
    page.find_element(By.ID, "send").click()
    until(page, lambda: "decoding" in text(page, "requests") and "prefill-0 → decode-" in text(page, "requests"))
    assert int(text(page, "running")) >= 1
    page.find_element(By.ID, "stop").click()
    until(page, lambda: "(stopped)" in text(page, "log"))
    until(page, lambda: text(page, "requests") == "" and text(page, "running") == "0")
    assert complaints(page) == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(page: Chrome, width: int, dark: bool) -> None:
    look(page, width=width, height=844, dark=dark)
    until(page, lambda: len(states(page)) == 3)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    ground, ink = page.execute_script("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    assert _contrast(ground, ink) > 7
    unnamed = """return [...document.querySelectorAll('input, textarea, button, [role=region], [role=log]')]
        .filter((e) => !(e.labels && e.labels.length) && !e.textContent.trim())
        .filter((e) => !e.getAttribute('aria-labelledby')).length"""
    assert page.execute_script(unnamed) == 0
    reached = []
    for _ in range(12):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("id"))
    assert {"words", "temperature", "most", "send"} <= set(reached)


def test_nothing_runs_but_its_own_script(service: PlainService, page: Chrome) -> None:
    with urllib.request.urlopen(service.url + "/", timeout=10) as answer:
        policy = answer.headers["content-security-policy"]
        body = answer.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in body.replace("http://www.w3.org/2000/svg", "") and "https://" not in body
    page.execute_script(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))"
    )
    assert page.execute_script("return window.hacked") is None
    assert "Content Security Policy" in " ".join(complaints(page))


def test_a_lost_worker_and_a_silent_router_are_said_clearly(service: PlainService, page: Chrome) -> None:
    until(page, lambda: len(states(page)) == 3)
    os.kill(service.worker_pids[2], signal.SIGKILL)
    until(page, lambda: states(page).get("decode-1") == "lost" and "decode-1 is lost" in text(page, "alert"))
    assert text(page, "ready") == "ready", "the others go on"
    port = int(service.url.rpartition(":")[2])
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    (router,) = {each.pid for each in listening if each.laddr.port == port}
    os.kill(router, signal.SIGSTOP)
    try:
        until(page, lambda: text(page, "ready") == "unreachable" and "does not answer" in text(page, "alert"))
    finally:
        os.kill(router, signal.SIGCONT)
    until(page, lambda: text(page, "ready") == "ready")


def _contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours as rgb(...)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
