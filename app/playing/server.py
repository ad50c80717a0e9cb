"""The game over HTTP: one page, and four requests that answer in JSON. Of the standard library, one process.

    GET  /          the page
    GET  /state     what there is to see now, and the curve so far
    POST /step      {"pressed": ["left", ...], "strength": 0.5}: one step
    POST /reset     {"seed": 3}: another episode; without a seed, the same one again
    POST /wake      {}: the dream begins anew from what is real

A web page of somewhere else must not be able to play: requests with an ``Origin`` other than this server are refused,
and, where it listens on loopback, those that came by another name (DNS rebinding).
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import os
import socket
import socketserver
import sys
import threading
import webbrowser
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from app.playing.game import Frame, Game, Measured, Moment
from app.playing.steering import PlayError

_LONGEST = 4096  # bytes of a request's body
_LOCAL = ("127.0.0.1", "localhost", "::1")
_IDLE_S = 120.0  # a connection that nobody uses is closed
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class PlayServer(ThreadingHTTPServer):
    """Serves ``game`` and its ``page``. The game runs in one thread of its own, one request after the other: threads of
    torch are made once, and no two steps mix. Raises ``PlayError`` where it cannot listen."""

    def __init__(self, game: Game, page: str, seed: int, host: str = "127.0.0.1", port: int = 0) -> None:
        self.game, self.page, self.host, self._ended = game, page.encode(), host, False
        if not 0 <= port < 2**16:
            raise PlayError(f"--port must lie between 0 (any that is free) and {2**16 - 1}, not {port}")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, address = found[0][0], found[0][4]
            super().__init__((str(address[0]), int(address[1])), Handler)
        except OSError as error:
            why = error.strerror or error
            raise PlayError(
                f"cannot listen on port {port} of {host}: {why}; choose another --port (0: any that is free) or --host"
            ) from None
        self.address = ipaddress.ip_address(str(self.server_address[0]))
        self.loopback = self.address.is_loopback
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="game")
        try:
            self.moment = self._worker.submit(self.game.reset, seed).result()
        except ValueError:
            self.server_close()
            raise

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        name = str(self.address)
        if self.address.is_unspecified:  # it listens on all of this machine's
            name = "127.0.0.1" if self.address.version == 4 else "::1"
        return f"http://{f'[{name}]' if ':' in name else name}:{self.server_address[1]}/"

    def state(self) -> dict[str, Any]:
        """What there is to see now, and the curve so far."""

        def look() -> dict[str, Any]:
            return plain(self.moment, goal=True) | {"curve": [plain_measured(point) for point in self.game.curve]}

        return self._worker.submit(look).result()

    def play(self, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """One of ``Handler.moves``. Raises ``PlayError`` for a request that does not fit."""

        def move() -> dict[str, Any]:
            if what == "step":
                self.moment = self.game.step(*_pressed(request))
            elif what == "reset":
                self.moment = self.game.reset(_seed(request, self.moment.seed))
            else:
                self.moment = self.game.wake()
            return plain(self.moment, goal=what == "reset")

        return self._worker.submit(move).result()

    def server_bind(self) -> None:
        """Without asking for this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def server_close(self) -> None:
        """Also ends the game's thread, with what was asked of it last."""
        self._ended = True
        super().server_close()
        if hasattr(self, "_worker"):  # it is closed too when it could not listen
            self._worker.shutdown(cancel_futures=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error, nor one that asks on when the game has ended."""
        if not self._ended and not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser; it stays open from step to step."""

    server: PlayServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer waits for the browser's delayed acknowledgement
    timeout = _IDLE_S
    moves = ("step", "reset", "wake")

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self._refused():
            return
        if path == "/":
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif path == "/state":
            self._send_json(HTTPStatus.OK, self.server.state())
        else:
            self._lost(path)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > _LONGEST:
            self.close_connection = True  # what it sends is not read
            self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"a request has at most {_LONGEST} bytes"})
            return
        body = self.rfile.read(int(length))
        if self._refused():
            return
        if path.removeprefix("/") not in self.moves:
            self._lost(path)
            return
        try:
            request = json.loads(body or b"{}")
            if not isinstance(request, dict):
                raise PlayError(f"a request is a JSON object, not {type(request).__name__}")
            self._send_json(HTTPStatus.OK, self.server.play(path[1:], request))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": f"a request is JSON: {error}"})
        except ValueError as error:  # the toolkit's errors for users, of the game and of what it is made of
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _refused(self) -> bool:
        """Whether the request comes from a page of somewhere else, and was answered so."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        try:
            refused = origin is not None and urlsplit(origin).netloc != host
            if self.server.loopback:
                refused |= urlsplit(f"//{host}").hostname not in (*_LOCAL, self.server.host)
        except ValueError:  # no address at all
            refused = True
        if refused:
            self._send_json(HTTPStatus.FORBIDDEN, {"error": "only this server's own page may play"})
        return refused

    def _lost(self, path: str) -> None:
        if path in ("/", "/state") or path.removeprefix("/") in self.moves:
            self._send_json(HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"{path} does not take {self.command}"})
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"there is no {path} here"})

    def _send_json(self, status: HTTPStatus, answer: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
            ("Content-Security-Policy", _POLICY), ("X-Content-Type-Options", "nosniff"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Ten requests a second are nobody's reading."""


def plain(moment: Moment, goal: bool = False) -> dict[str, Any]:
    """A moment as JSON: pictures are PNGs as data URIs. ``goal``: with the picture of the goal, or null."""
    found = moment._asdict()
    pictures: dict[str, Frame | None] = {name: found.pop(name) for name in ("real", "decoded", "dream", "goal")}
    if not goal:
        del pictures["goal"]
    measured = found.pop("measured")
    return {
        **found, "measured": None if measured is None else plain_measured(measured),
        "pictures": {name: None if picture is None else fast_png(picture) for name, picture in pictures.items()},
    }  # fmt: skip


def fast_png(picture: Frame) -> str:
    """``[H, W, 3]`` to a PNG data URI: a little larger than a report's, in a quarter of the time."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def plain_measured(point: Measured) -> dict[str, float]:
    """A point of the curve as JSON."""
    return point._asdict()


def _pressed(request: Mapping[str, Any]) -> tuple[list[str], float]:
    pressed, strength = request.get("pressed", []), request.get("strength", 1.0)
    if not isinstance(pressed, list) or not all(isinstance(name, str) for name in pressed):
        raise PlayError(f"pressed is a list of names, not {pressed!r}")
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise PlayError(f"strength is a number, not {strength!r}")
    return pressed, float(strength)


def _seed(request: Mapping[str, Any], now: int) -> int:
    seed = request.get("seed", now)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise PlayError(f"seed is a whole number from 0 to {2**31 - 1}, not {seed!r}")
    return seed


def serve(server: PlayServer, browser: bool) -> None:
    """Play until Ctrl-C. ``browser``: open the page; where there is no browser, say how else to get to it."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        print(f"play at {server.url}  (Ctrl-C ends it)", flush=True)
        if not server.loopback:
            print(f"{server.host} is no loopback address: everyone who reaches this machine can play", flush=True)
        if browser and not open_browser(server.url):
            port = server.server_address[1]
            print(
                f"no browser could be opened here: open {server.url} yourself, from another machine after "
                f"ssh -L {port}:127.0.0.1:{port} to this one (--no-browser leaves this attempt out)",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        thread.join()
    except KeyboardInterrupt:
        print("\nended")
    finally:
        server.shutdown()
        server.server_close()


def open_browser(url: str) -> bool:
    """Whether a browser with windows was started. One in the terminal would fight for it, and is only started if the
    user has named it (BROWSER)."""
    windows = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return windows and webbrowser.open(url)
