"""A headless Chromium as a process that is always reaped, and what a person does with a page."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tests.support.devtools import Devtools, DevtoolsError, DevtoolsPipe, open_devtools

VARIABLE: Final = "ETCD_ACTIONS_TEST_CHROMIUM"
"""Names the browser's program. Where it is set, a browser that is missing is an error."""

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    # /dev/shm is small in containers.
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--lang=en-US",
    "--remote-debugging-pipe",
)
_NEXT_FD: Final = 10
_TO_END: Final = 10.0

# The keys that are no characters: the code, and the number that older scripts look at.
_KEYS: Final = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "PageUp": 33,
    "PageDown": 34,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
_SHIFT: Final = 8


def find_chromium() -> str | None:
    """The path of the browser's program, if there is one.

    Raises:
        FileNotFoundError: :data:`VARIABLE` names one that does not exist.
    """
    if named := os.environ.get(VARIABLE):
        found = shutil.which(named)
        if found is None:
            raise FileNotFoundError(f"{VARIABLE} is {named!r}, which is not a program")
        return found
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def running_chromium(program: str) -> Iterator[DevtoolsPipe]:
    """Run a browser, with a new profile, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        pid, pipe = _spawn(program, Path(home))
        try:
            yield pipe
        finally:
            pipe.close()
            _reap(pid)


def _spawn(program: str, home: Path) -> tuple[int, DevtoolsPipe]:
    to_browser, from_browser = os.pipe(), os.pipe()
    # The browser has 3 and 4, so that ours must not be one of them when they are copied.
    theirs = [
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _NEXT_FD) for fd in (to_browser[0], from_browser[1])
    ]
    os.close(to_browser[0])
    os.close(from_browser[1])
    log = home / "stderr"
    try:
        pid = os.posix_spawn(
            program,
            [program, *_FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"],
            {**os.environ, "HOME": str(home), "TZ": "UTC"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, theirs[0], 3),
                (os.POSIX_SPAWN_DUP2, theirs[1], 4),
            ],
            setsid=True,
        )
    finally:
        for each in theirs:
            os.close(each)
    return pid, DevtoolsPipe(from_browser[0], to_browser[1])


def _reap(pid: int) -> None:
    """Wait for a browser whose pipe is closed; end it and its children if it takes long."""
    give_up = time.monotonic() + _TO_END
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > give_up:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.02)
    # Its children are of its group: those that have not ended yet are ended.
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class ScriptError(Exception):
    """An expression raised in the page."""


@dataclass(frozen=True)
class Screen:
    """How large a page is, and what kind of device shows it.

    Attributes:
        width: In CSS pixels.
        height: The same.
        is_phone: It has touch, and a viewport as a phone has.
        is_dark: The person prefers dark colours.
    """

    width: int = 1280
    height: int = 800
    is_phone: bool = False
    is_dark: bool = False


PHONE: Final = Screen(width=360, height=740, is_phone=True)


class Page:
    """One page of a browser; made by :func:`open_page`.

    Attributes:
        problems: What a page without defects does not have: exceptions, errors on the console,
            what its content security policy has refused.
        requests: The URLs that the page has requested.
    """

    def __init__(self, devtools: Devtools, session: str) -> None:
        self._devtools = devtools
        self._session = session
        self.problems: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the page."""
        return await self._devtools.call(method, self._session, **parameters)

    def take(self, event: str, parameters: dict[str, Any]) -> None:
        """Note an event."""
        match event:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(_why(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                said = [
                    str(each.get("value", each.get("description"))) for each in parameters["args"]
                ]
                self.problems.append(" ".join(said))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                entry = parameters["entry"]
                self.problems.append(f"{entry['text']} {entry.get('url', '')}".rstrip())

    async def show_on(self, screen: Screen) -> None:
        """Change the size and the kind of the screen."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=screen.width,
            height=screen.height,
            deviceScaleFactor=1,
            mobile=screen.is_phone,
        )
        await self.call("Emulation.setTouchEmulationEnabled", enabled=screen.is_phone)
        scheme = "dark" if screen.is_dark else "light"
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )

    async def go(self, url: str) -> None:
        """Open a URL, and return once its document and all that belongs to it have been loaded.

        Raises:
            DevtoolsError: It cannot be loaded.
        """
        went = await self.call("Page.navigate", url=url)
        if error := went.get("errorText"):
            raise DevtoolsError(f"{url}: {error}")
        await self.until("document.readyState === 'complete'")

    async def run_before(self, script: str) -> None:
        """Run a script in each document that is opened from now on, before its own."""
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def value(self, expression: str) -> Any:
        """What an expression gives in the page; of a promise what it is settled with.

        Raises:
            ScriptError: It raised.
        """
        answer = await self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise ScriptError(_why(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, expression: str, *, within: float = 30) -> Any:
        """The value of an expression once it is true; the document may change during that.

        Raises:
            TimeoutError: It was not in time; the message has the page's text.
        """
        give_up = trio.current_time() + within
        why = ""
        while trio.current_time() < give_up:
            try:
                if found := await self.value(f"({expression})"):
                    return found
                why = ""
            except (ScriptError, DevtoolsError) as error:
                why = f" ({error})"
            await trio.sleep(0.01)
        text = await self.value("document.documentElement.innerText")
        raise TimeoutError(f"not in time: {expression}{why}\n{self.problems}\n{text}")

    async def until_shown(self, text: str, selector: str = "body") -> None:
        """Return once an element shows a text."""
        await self.until(
            f"[...document.querySelectorAll({_quoted(selector)})].some("
            f"each => each.innerText.includes({_quoted(text)}))"
        )

    async def texts(self, selector: str) -> list[str]:
        """What the elements show that a selector finds."""
        found: list[str] = await self.value(
            f"[...document.querySelectorAll({_quoted(selector)})].map(each => each.innerText)"
        )
        return found

    async def count(self, selector: str) -> int:
        """How many elements a selector finds."""
        found: int = await self.value(f"document.querySelectorAll({_quoted(selector)}).length")
        return found

    async def click(self, selector: str, text: str = "") -> None:
        """Press the mouse's button in the middle of the first visible element with a text."""
        x, y = await self._middle(selector, text)
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def tap(self, selector: str, text: str = "") -> None:
        """The same with a finger."""
        x, y = await self._middle(selector, text)
        await self.call(
            "Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}]
        )
        await self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other; ``Shift+Tab`` is both."""
        for each in keys:
            shift, _, key = each.rpartition("Shift+")
            modifiers = _SHIFT if shift or each.startswith("Shift+") else 0
            if key in _KEYS:
                text = "\r" if key == "Enter" else ""
                code, number = key, _KEYS[key]
            else:
                text, code, number = key, "", ord(key.upper())
            common = {
                "key": key,
                "code": code,
                "windowsVirtualKeyCode": number,
                "modifiers": modifiers,
            }
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            await self.call("Input.dispatchKeyEvent", **down, **common)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        """Put a text in where the focus is."""
        await self.call("Input.insertText", text=text)

    async def screenshot(self, kind: str = "png", **options: Any) -> bytes:
        """What the page looks like."""
        shot = await self.call("Page.captureScreenshot", format=kind, **options)
        return base64.b64decode(shot["data"])

    async def _middle(self, selector: str, text: str) -> tuple[float, float]:
        # What has moved between two frames may be elsewhere when the button is pressed.
        found = await self.until(
            f"""(async () => {{
                const middle = () => {{
                    for (const each of document.querySelectorAll({_quoted(selector)})) {{
                        if (!(each.innerText ?? '').includes({_quoted(text)})) continue;
                        each.scrollIntoView({{block: 'nearest', inline: 'nearest'}});
                        const box = each.getBoundingClientRect();
                        if (!box.width || !box.height) continue;
                        const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                        // No other element may be in front of it.
                        if (each.contains(document.elementFromPoint(x, y))) return [x, y];
                    }}
                    return null;
                }};
                const frame = () => new Promise(resolve => requestAnimationFrame(resolve));
                const before = middle();
                await frame();
                await frame();
                const after = middle();
                return before?.join() === after?.join() ? after : null;
            }})()"""
        )
        return found[0], found[1]


class Browser:
    """A browser within one run of trio; made by :func:`open_browser`."""

    def __init__(self, devtools: Devtools) -> None:
        self._devtools = devtools

    @asynccontextmanager
    async def open_page(self, screen: Screen = Screen()) -> AsyncIterator[Page]:
        """A page with cookies and storage of its own, for as long as the context lasts."""
        devtools = self._devtools
        context = (await devtools.call("Target.createBrowserContext"))["browserContextId"]
        try:
            target = await devtools.call(
                "Target.createTarget", url="about:blank", browserContextId=context
            )
            attached = await devtools.call(
                "Target.attachToTarget", targetId=target["targetId"], flatten=True
            )
            session = attached["sessionId"]
            page = Page(devtools, session)
            devtools.listen(session, page.take)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.show_on(screen)
            yield page
            devtools.forget(session)
        finally:
            with trio.CancelScope(shield=True), suppress(DevtoolsError):
                await devtools.call("Target.disposeBrowserContext", browserContextId=context)


@asynccontextmanager
async def open_browser(pipe: DevtoolsPipe) -> AsyncIterator[Browser]:
    """Use a browser that runs, for as long as the context lasts."""
    async with open_devtools(pipe) as devtools:
        yield Browser(devtools)


def _why(details: dict[str, Any]) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details.get("text"))


def _quoted(text: str) -> str:
    """A string of JavaScript, which takes what JSON has, and no lone surrogates."""
    return json.dumps(text)
