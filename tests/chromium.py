"""A real browser for tests of pages: Chromium as the system has it, driven by playwright."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root there is no sandbox. No name is resolved, so that nothing is reached but by its number.
OPTIONS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]


@pytest.fixture(scope="module")  # its event loop is in no other test's way
def chromium():
    """Playwright's Browser; the tests of a module are skipped where a part of it is missing."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium (apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright (pip install playwright)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that was opened."""

    page: object  # playwright's
    outside: list[str] = field(default_factory=list)  # addresses that it asked for elsewhere
    errors: list[str] = field(default_factory=list)  # of its scripts, that nothing caught


@contextmanager
def visit(browser, address: str, width: int = 1280, height: int = 900) -> Iterator[Visit]:
    """Opens http://127.0.0.1:PORT/… in a window of its own. What the page asks for elsewhere is
    refused and kept in `outside`; service workers, which could ask unseen, are off."""
    home = "/".join(address.split("/")[:3]) + "/"
    context = browser.new_context(
        viewport={"width": width, "height": height}, service_workers="block", accept_downloads=True
    )
    try:
        seen = Visit(context.new_page())

        def judge(route):
            here = route.request.url.startswith((home, "data:", "blob:"))
            if not here:
                seen.outside.append(route.request.url)
            (route.continue_ if here else route.abort)()

        context.route("**/*", judge)
        # sockets are not routed; none of these pages uses one
        seen.page.on("websocket", lambda socket: seen.outside.append(socket.url))
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(address)
        yield seen
    finally:
        context.close()
