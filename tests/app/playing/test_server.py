"""The game over HTTP: what the page asks for, what is refused, and how it begins and ends."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, RemoteDisconnected
from typing import Any

import numpy as np
import pytest
import torch
from made_game import ToyDecoder, request, served, toy_game
from PIL import Image
from planning.toy import SIDE
from slurm.cluster import free_ports

from app.playing import server as module
from app.playing.page import play_page
from app.playing.server import PlayServer, open_browser, serve
from app.playing.steering import PlayError


def picture(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# ---- what the page asks for ------------------------------------------------------------------------------------------


def test_the_page_holds_all_that_it_needs() -> None:
    with served(toy_game()) as server:
        status, text = request(server, "GET", "/")
    assert status == 200
    assert not re.findall(r"https?:|<link rel=\"stylesheet|@import|\ssrc=\"(?!data:)", text)
    settings = json.loads(re.findall(r'<script type="application/json" id="settings">(.*?)</script>', text)[0])
    assert settings["controls"][0] == {"name": "left", "keys": ["ArrowLeft", "KeyA"]}
    assert (settings["idle"], settings["realMoves"]) == (True, True)
    assert re.findall(r'data-press="(.*?)"', text) == ["left", "right", "up", "down"]
    assert 'id="strength"' in text
    assert 'id="curve"' in text


def test_the_page_of_codes() -> None:
    game = toy_game(codes=torch.zeros(12, 2))
    text = play_page(game, "runs/</script><b>", "decoder", "rooms", 10)
    assert re.findall(r'data-press="(.*?)"', text) == [str(k) for k in range(12)]
    assert "<b>" not in text.partition("</h1>")[2].partition("</p>")[0], "names are escaped"
    for absent in ('id="strength"', 'id="run"', 'id="curve"', 'data-move="wake"'):
        assert absent not in text


def test_a_step_is_what_the_game_says() -> None:
    game, twin = toy_game(), toy_game()
    twin.reset(3)
    with served(game) as server:
        _, state = request(server, "GET", "/state")
        assert (state["seed"], state["step"], state["curve"], state["measured"]) == (3, 0, [], None)
        assert picture(state["pictures"]["goal"]).shape == (SIDE, SIDE, 3)
        status, moved = request(server, "POST", "/step", {"pressed": ["right"], "strength": 0.5})
        expected = twin.step(["right"], 0.5)
        assert status == 200
        assert set(moved["pictures"]) == {"real", "decoded", "dream"}, "the goal stays"
        for name, frame in (("real", expected.real), ("decoded", expected.decoded), ("dream", expected.dream)):
            np.testing.assert_array_equal(picture(moved["pictures"][name]), frame)
        assert expected.measured is not None
        assert moved["measured"] == expected.measured._asdict()
        _, woken = request(server, "POST", "/wake")
        assert (woken["step"], woken["dreamt"]) == (1, 0)
        _, state = request(server, "GET", "/state")
        assert state["curve"] == [moved["measured"]]
        _, again = request(server, "POST", "/reset", {})
        assert (again["seed"], again["step"], "goal" in again["pictures"]) == (3, 0, True)
        assert request(server, "POST", "/reset", {"seed": 4})[1]["seed"] == 4
        assert request(server, "GET", "/state")[1]["curve"] == []


def test_a_world_without_goal() -> None:
    with served(toy_game(goal=False)) as server:
        assert request(server, "GET", "/state")[1]["pictures"]["goal"] is None


def test_steps_asked_for_at_once_come_one_after_the_other() -> None:
    with served(toy_game()) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: request(server, "POST", "/step", {"pressed": ["right"]}), range(24)))
    assert sorted(answer["step"] for _, answer in answers) == list(range(1, 25))


def test_a_connection_stays_open() -> None:
    with served(toy_game()) as server:
        connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        connection.connect()
        own = connection.sock
        for number in (1, 2, 3):
            assert request(server, "POST", "/step", {}, connection)[1]["step"] == number
            assert connection.sock is own
        connection.close()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/other", None, 404, "there is no /other here"),
        ("POST", "/other", {}, 404, "there is no /other here"),
        ("GET", "/step", None, 405, "/step does not take GET"),
        ("POST", "/state", {}, 405, "/state does not take POST"),
        ("POST", "/step", b"{", 400, "a request is JSON: Expecting property name"),
        ("POST", "/step", b"\xff", 400, "a request is JSON: "),
        ("POST", "/step", [1], 400, "a request is a JSON object, not list"),
        ("POST", "/step", {"pressed": "left"}, 400, "pressed is a list of names, not 'left'"),
        ("POST", "/step", {"pressed": [1]}, 400, "pressed is a list of names, not [1]"),
        ("POST", "/step", {"pressed": ["fly"]}, 400, "there is no control 'fly'; there are left, right, up, down"),
        ("POST", "/step", {"strength": True}, 400, "strength is a number, not True"),
        ("POST", "/step", b'{"strength": NaN}', 400, "strength must lie between 0 and 1, not nan"),
        ("POST", "/reset", {"seed": -1}, 400, "seed is a whole number from 0 to 2147483647, not -1"),
        ("POST", "/reset", {"seed": 1.5}, 400, "seed is a whole number from 0 to 2147483647, not 1.5"),
        ("POST", "/step", b" " * 5000, 413, "a request has at most 4096 bytes"),
    ],
)
def test_requests_that_do_not_fit(method: str, path: str, body: Any, status: int, message: str) -> None:
    with served(toy_game()) as server:
        found, answer = request(server, method, path, body)
        assert (found, answer["error"][: len(message)]) == (status, message)
        assert request(server, "GET", "/state")[1]["step"] == 0


def test_pages_of_somewhere_else_cannot_play() -> None:
    with served(toy_game()) as server:
        port = server.server_address[1]
        for headers in (
            {"Origin": "http://evil.test"}, {"Origin": "null"}, {"Host": f"evil.test:{port}"}, {"Host": "[broken"},
            {"Origin": f"http://evil.test:{port}", "Host": f"evil.test:{port}"},
        ):  # fmt: skip
            for method, path in (("POST", "/step"), ("GET", "/state"), ("GET", "/")):
                status, answer = request(server, method, path, {} if method == "POST" else None, **headers)
                assert (status, answer["error"]) == (403, "only this server's own page may play")
        own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
        assert request(server, "POST", "/step", {}, **own)[1]["step"] == 1
        tunnelled = {"Host": "127.0.0.1:9", "Origin": "http://127.0.0.1:9"}  # another port of an ssh tunnel
        assert request(server, "POST", "/step", {}, **tunnelled)[1]["step"] == 2


def test_an_error_of_the_decoder_is_told_and_play_goes_on() -> None:
    game = toy_game()
    with served(game) as server:
        whole = ToyDecoder.decode

        def broken(*args: Any, **options: Any) -> Any:
            raise ValueError("no memory")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ToyDecoder, "decode", broken)
            assert request(server, "POST", "/step", {}) == (400, {"error": "no memory"})
        assert ToyDecoder.decode is whole
        assert request(server, "POST", "/step", {})[0] == 200


# ---- beginning and end -----------------------------------------------------------------------------------------------


def test_addresses_that_cannot_be_listened_on() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, message in (
            ({"port": port}, f"cannot listen on port {port} of 127.0.0.1: Address already in use; choose another"),
            ({"port": 70000}, "--port must lie between 0 (any that is free) and 65535, not 70000"),
            ({"host": "256.0.0.1"}, "cannot listen on port 0 of 256.0.0.1: "),
            ({"host": "192.0.2.1"}, "cannot listen on port 0 of 192.0.2.1: Cannot assign requested address"),
        ):
            with pytest.raises(PlayError, match=re.escape(message)):
                PlayServer(toy_game(), "", 0, **options)  # type: ignore[arg-type]


def test_a_world_that_cannot_begin_leaves_no_port_open() -> None:
    game = toy_game()
    game.model.state_dim = 9  # type: ignore[misc]
    (port,) = free_ports(1)
    with pytest.raises(PlayError, match="the model's 9"):
        PlayServer(game, "", 0, port=port)
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/")


def test_names_of_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    for host, start in (("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")):
        server = PlayServer(toy_game(), "", 0, host=host)
        assert server.url.startswith(start)
        assert server.loopback is (host == "127.0.0.1")
        server.server_close()
    if socket.has_dualstack_ipv6():
        with served(toy_game(), host="::1") as server:
            assert server.url == f"http://[::1]:{server.server_address[1]}/"
            connection = HTTPConnection("::1", server.server_address[1], timeout=60)
            assert request(server, "GET", "/state", connection=connection)[0] == 200
            connection.close()


def test_it_serves_before_the_browser_opens_and_ctrl_c_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = PlayServer(toy_game(), "page", 0)

    def browse(url: str) -> bool:
        assert url == server.url
        assert request(server, "GET", "/") == (200, "page")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_browser", browse)
    serve(server, browser=True)
    out = capsys.readouterr().out
    assert out == f"play at {server.url}  (Ctrl-C ends it)\n\nended\n"
    with pytest.raises(ConnectionRefusedError):
        request(server, "GET", "/")


def test_a_page_that_asks_on_after_the_end_is_let_go(capsys: pytest.CaptureFixture[str]) -> None:
    with served(toy_game()) as server:
        connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        request(server, "POST", "/step", {}, connection)
    with pytest.raises(RemoteDisconnected):
        request(server, "POST", "/step", {}, connection)
    connection.close()
    assert capsys.readouterr().err == ""


def test_without_a_browser_it_says_how_to_get_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(asked.append(url)))
    for host, browser in (("127.0.0.1", True), ("0.0.0.0", True), ("127.0.0.1", False)):
        server = PlayServer(toy_game(), "page", 0, host=host)
        threading.Timer(0.3, server.shutdown).start()
        serve(server, browser=browser)
        printed, port = capsys.readouterr(), server.server_address[1]
        wanted = f"no browser could be opened here: open http://127.0.0.1:{port}/ yourself, from another machine after "
        assert printed.err.startswith(wanted) is browser
        assert (f"-L {port}:127.0.0.1:{port}" in printed.err) is browser
        assert ("everyone who reaches this machine can play" in printed.out) is (host == "0.0.0.0")
    assert asked == [], "no browser of the terminal is tried"
    monkeypatch.setenv("BROWSER", "mine")
    assert not open_browser("http://127.0.0.1:1/")
    assert asked == ["http://127.0.0.1:1/"]
