"""A real browser, driven over its devtools protocol: opens one file, and tells all that happened in it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websocket import WebSocket, create_connection

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-port=0",
    "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip


class Page:
    """One tab. `events` holds everything the browser told of: requests, log entries, exceptions."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, file: Path) -> None:
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=file.resolve().as_uri())
        until = time.monotonic() + 30
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < until, "the page did not load"
            self.events.append(json.loads(self._socket.recv()))

    def ask(self, script: str) -> Any:
        """The value of an expression, or of the promise it gives; the devtools may run it whatever the page allows."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def width(self, pixels: int, *, phone: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=800, deviceScaleFactor=1, mobile=phone
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"])

    def requests(self) -> list[str]:
        """Addresses that were asked for, but for what is within the page."""
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[Mapping[str, Any]]:
        """Whatever the browser put on the console, and violations of the page's policy."""
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded")
        return [event for name in names for event in self._of(name)]

    def _of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["method"] == name]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A Chromium of its own, with a new profile, and one empty tab in it."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        port, path = _address(profile / "DevToolsActivePort")
        socket = create_connection(f"ws://127.0.0.1:{port}{path}", timeout=60, suppress_origin=True)
        root = Page(socket)
        targets = root.send("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        socket.close()
        socket = create_connection(f"ws://127.0.0.1:{port}/devtools/page/{tab}", timeout=60, suppress_origin=True)
        yield Page(socket)
        socket.close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its helpers too
        process.wait()


def _address(file: Path) -> list[str]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            lines = file.read_text().splitlines()
            if len(lines) == 2:
                return lines
        time.sleep(0.1)
    raise AssertionError("Chromium did not start")
