"""A real browser without windows, spoken to over two pipes (the DevTools protocol): nothing to install but Chromium."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe", "--window-size=1100,1150",
)  # fmt: skip


_WITH_PIPES = """
import fcntl, os, sys
theirs = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]  # out of the way of 3 and 4
os.dup2(theirs[0], 3)
os.dup2(theirs[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page of a browser. Whatever it does not answer within ``patience_s`` is an error."""

    def __init__(self, read: int, write: int, patience_s: float) -> None:
        self._read, self._write, self.patience_s = read, write, patience_s
        self._number, self._rest, self._session, self._loads = 0, b"", "", 0
        self.problems: list[str] = []  # what the page's script threw, and what the browser logged as an error

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.load("Page.navigate", url=url)

    def load(self, method: str, **parameters: Any) -> None:
        """A command that loads a page ("Page.reload"), and the end of its loading."""
        before, until = self._loads, time.monotonic() + self.patience_s
        self.call(method, **parameters)
        while self._loads == before:
            self._note(self._next(until))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command and its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.patience_s
        while True:
            answer = self._next(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression, as plain data."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The expression's first value that is true."""
        until = time.monotonic() + self.patience_s
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"never true: {expression}; {self.problems}"
            time.sleep(0.02)
        return found

    def key(self, kind: str, code: str, **more: Any) -> None:
        """``kind``: "rawKeyDown" or "keyUp"; ``code``: as in ``KeyboardEvent.code``."""
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=code.removeprefix("Key").lower(), **more)

    def pointer(self, kind: str, selector: str) -> None:
        """``kind``: "mousePressed" or "mouseReleased", in the middle of an element."""
        box = self.value(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def click(self, selector: str) -> None:
        self.pointer("mousePressed", selector)
        self.pointer("mouseReleased", selector)

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _note(self, message: dict[str, Any]) -> None:
        """What the browser says by itself."""
        name, event = message.get("method"), message.get("params", {})
        if name == "Page.loadEventFired":
            self._loads += 1
        elif name == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif name == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.problems.append(event["entry"]["text"])

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser did not answer within {self.patience_s:g} s"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def browse(url: str, profile: Path, patience_s: float = 120.0) -> Iterator[Page]:
    """A page at ``url`` in a browser of its own, whose files lie in ``profile``."""
    assert CHROMIUM is not None
    theirs_in, write = os.pipe()
    read, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_PIPES, str(theirs_in), str(theirs_out), CHROMIUM, *FLAGS,
         f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(profile)}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(read, write, patience_s)
        page.open(url)
        yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its helpers
        process.wait()
        os.close(read)
        os.close(write)
