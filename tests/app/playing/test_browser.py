"""The page in a real browser: keys and buttons move the worlds, pictures and numbers are those of the server."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Page, browse
from made_game import served, toy_game
from PIL import Image

from app.playing.server import PlayServer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to look at the page with")


def number(page: Page, name: str) -> float:
    return float(page.value(f"document.getElementById('{name}-fact').textContent"))


def pixels(page: Page, name: str) -> np.ndarray:
    """What an image of the page shows."""
    uri = page.value(f"document.getElementById('{name}').src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def tap(page: Page, code: str) -> None:
    """A key down and up within one turn of the page's script."""
    page.value(f"for (const kind of ['keydown', 'keyup']) dispatchEvent(new KeyboardEvent(kind, {{code: '{code}'}}))")


def settle(page: Page, server: PlayServer) -> None:
    """Wait until nothing is pressed, asked for or under way: then the page shows what the server has come to."""
    page.wait_for("!held.size && !tapped.size && waiting.then(() => new Promise(done => setTimeout(done, 0, true)))")
    assert number(page, "step") == server.moment.step


def test_playing_by_keyboard_and_pointer(tmp_path: Path) -> None:
    with served(toy_game(gain=3.0)) as server, browse(server.url, tmp_path / "profile") as page:
        page.wait_for("document.getElementById('dream').naturalWidth === 16")
        assert (number(page, "step"), number(page, "seed")) == (0, 3)
        np.testing.assert_array_equal(pixels(page, "real"), server.moment.real)
        assert not page.value("document.getElementById('goal-figure').hidden")

        # a key that is held lets time pass, and none does not
        page.key("rawKeyDown", "ArrowRight")
        page.wait_for("document.getElementById('step-fact').textContent >= 5")
        assert page.value("document.querySelector('[data-press=right]').classList.contains('down')")
        page.key("keyUp", "ArrowRight")
        settle(page, server)
        assert server.moment.measured is not None
        for name, frame in (("real", server.moment.real), ("dream", server.moment.dream)):
            np.testing.assert_array_equal(pixels(page, name), frame)
        steps, shown = server.moment.step, page.value("document.getElementById('dream-words').textContent")
        assert shown.startswith("surprise ")
        assert float(shown.split()[1]) == pytest.approx(server.moment.measured.surprise, rel=5e-3)
        assert page.value("curve.map(point => point.surprise)") == [point.surprise for point in server.game.curve]
        page.value("new Promise(done => setTimeout(() => done(true), 200))")
        assert server.moment.step == steps

        # a tap is a step, however short; strength is as the slider says; shortcuts of the browser are left alone
        before = server.moment.real[0, 0].astype(int)
        page.value("(s => { s.value = 100; s.oninput(); })(document.getElementById('strength'))")
        tap(page, "KeyS")
        page.key("rawKeyDown", "KeyD", modifiers=2)
        page.key("keyUp", "KeyD", modifiers=2)
        settle(page, server)
        assert server.moment.step == steps + 1
        np.testing.assert_allclose(server.moment.real[0, 0] - before, [0, 0.12 * 255, 0], atol=1)

        # waking by Enter; a button that is held; other episodes
        page.key("rawKeyDown", "Enter")
        page.key("keyUp", "Enter")
        page.wait_for("document.getElementById('dreamt-fact').textContent === '0'")
        np.testing.assert_allclose(pixels(page, "dream").astype(int), pixels(page, "real"), atol=1)
        page.pointer("mousePressed", "[data-press=left]")
        page.wait_for("document.getElementById('dreamt-fact').textContent >= 2")
        page.pointer("mouseReleased", "[data-press=left]")
        settle(page, server)
        page.screenshot(tmp_path / "page.png")
        page.click("[data-move=next]")
        page.wait_for("document.getElementById('seed-fact').textContent === '4'")
        assert (number(page, "step"), page.value("curve.length")) == (0, 0)
        assert page.problems == []
    with Image.open(tmp_path / "page.png") as shot:
        assert len(shot.convert("RGB").getcolors(1 << 20)) > 50, "something is drawn"


def test_the_state_outlives_the_page_and_the_server_is_missed(tmp_path: Path) -> None:
    with served(toy_game()) as server, browse(server.url, tmp_path / "profile") as page:
        page.wait_for("document.getElementById('seed-fact').textContent === '3'")
        page.key("rawKeyDown", "Space")
        page.wait_for("document.getElementById('step-fact').textContent >= 2")
        page.key("keyUp", "Space")
        settle(page, server)
        kept = [point.surprise for point in server.game.curve]
        page.load("Page.reload")
        page.wait_for("document.getElementById('step-fact').textContent > 0")
        assert page.value("curve.map(point => point.surprise)") == kept
        assert float(page.value("document.getElementById('fps-fact').textContent")) == 0
        server.shutdown()
        server.server_close()
        page.value("fetch = () => Promise.reject(new TypeError('Failed to fetch'))")  # an open connection lives on
        page.key("rawKeyDown", "ArrowUp")
        words = page.wait_for(
            "!document.getElementById('error').hidden && document.getElementById('error').textContent"
        )
        assert words.startswith("The server does not answer")
        page.key("keyUp", "ArrowUp")


def test_codes_by_digit_and_button(tmp_path: Path) -> None:
    codes = torch.tensor([[0.02, 0.0], [0.0, 0.02]])
    with served(toy_game(codes=codes)) as server, browse(server.url, tmp_path / "profile") as page:
        page.wait_for("document.getElementById('seed-fact').textContent === '3'")
        start = server.moment.dream[0, 0].astype(int)
        for _ in range(2):
            tap(page, "Digit1")
            settle(page, server)
        assert server.moment.step == 2
        page.click("[data-press='0']")
        settle(page, server)
        more = server.moment.step - 2  # as many as the click is long
        assert more >= 1
        np.testing.assert_allclose(server.moment.dream[0, 0] - start, [0.04 * more * 255, 0.08 * 255, 0], atol=1)
        np.testing.assert_array_equal(pixels(page, "dream"), server.moment.dream)
        assert page.problems == []
