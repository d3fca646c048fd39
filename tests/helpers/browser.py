"""A headless Chromium for tests of pages, spoken to in its own protocol over a pair of pipes.

Keys and clicks are real events of the browser, not calls of a script's; every request, every
message on the console and every error of a script is kept for the test to look at.
Source: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
BECOME = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(given), fcntl.F_DUPFD, 10) for given in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 20.0
"""Seconds until an answer that does not come fails the test."""


def executable() -> str | None:
    """The browser, if there is one on the path."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """The one page of a browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._ready = selectors.DefaultSelector()
        self._ready.register(answers, selectors.EVENT_READ)
        self._unread, self._sent, self._session = b"", 0, ""
        self.requests: list[str] = []
        """URLs of everything that was asked for since `open`."""
        self.complaints: list[str] = []
        """Console messages, errors of scripts and violations of the page's policy."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Give a command and wait for its answer; what happens meanwhile is kept."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda heard: heard.get("id") == self._sent)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Show a file, in a window of so many pixels, to someone who prefers the colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=preferred)
        self.requests.clear()
        self.complaints.clear()
        self.send("Page.navigate", url=path.as_uri())
        self._until(lambda heard: heard.get("method") == "Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """What an expression of JavaScript, or the promise it gives, comes to in the page."""
        how = {"returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", expression=expression, **how)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key: "Tab", "Enter", " " or an arrow."""
        texts = {"Enter": "\r", " ": " "}
        codes = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37,
                 "ArrowRight": 39}  # fmt: skip
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes[key]}
        down = {**about, "text": texts[key]} if key in texts else about
        self.send("Input.dispatchKeyEvent", type="keyDown", **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def point(self, selector: str, share: float = 0.5, *, click: bool = False) -> None:
        """Move the pointer to `share` of the width of the first element that fits, and click."""
        corner = self.ask(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f" return [b.left, b.top, b.width, b.height] }})(document.querySelector({selector!r}))"
        )
        left, top, width, height = corner
        at = {"x": left + share * width, "y": top + height / 2}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for what in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=what, button="left", clickCount=1, **at)

    def picture(self, selector: str = "") -> bytes:
        """A PNG of the window, or of one element."""
        settings: dict[str, Any] = {}
        if selector:
            box = self.ask(
                f"(b => ({{x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}}))"
                f"(document.querySelector({selector!r}).getBoundingClientRect())"
            )
            settings = {"clip": {**box, "scale": 1}, "captureBeyondViewport": True}
        return base64.b64decode(self.send("Page.captureScreenshot", **settings)["data"])

    def _until(self, wanted: Any) -> dict[str, Any]:
        """The first message that is `wanted`; those before it are noted."""
        end = time.monotonic() + PATIENCE
        while True:
            while b"\0" in self._unread:
                text, _, self._unread = self._unread.partition(b"\0")
                heard = json.loads(text)
                self._note(heard)
                if wanted(heard):
                    return heard
            if not self._ready.select(timeout=max(0.0, end - time.monotonic())):
                raise TimeoutError(f"the browser said nothing for {PATIENCE:g} s")
            got = os.read(self._answers, 1 << 20)
            if not got:
                raise RuntimeError("the browser is gone")
            self._unread += got

    def _note(self, heard: dict[str, Any]) -> None:
        params = heard.get("params", {})
        match heard.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(f"console: {params['args']}")
            case "Runtime.exceptionThrown":
                self.complaints.append(f"error: {params['exceptionDetails']}")
            case "Log.entryAdded":
                self.complaints.append(f"log: {params['entry']['text']}")


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A browser whose profile lies in an empty folder; it is gone afterwards.

    The protocol wants commands on descriptor 3 and answers on 4: a small program puts them there
    and becomes the browser.
    """
    browser = executable()
    assert browser is not None
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    words = [browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", BECOME, str(to_read), str(to_write), *words],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(commands, answers)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(answers)
