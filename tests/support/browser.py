"""Chromium, as Debian packages it, driven by Playwright.

with chromium() as browser:
    context = browser.new_context()
    page, complaints = open_page(context, site)
    page.goto(site)
    assert complaints == []
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

from tests.support.system_postgres import find_program

PROGRAM: Final = "chromium"
ARGUMENTS: Final = (
    "--headless=new",
    "--no-sandbox",  # root in a container has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EXPECT_MILLISECONDS: Final = 30_000
"""As long as Playwright waits for everything else; its default is five seconds."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own, which is removed at the end."""
    program = find_program(PROGRAM)
    assert program is not None, f"{PROGRAM} is not installed"
    expect.set_options(timeout=EXPECT_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=ARGUMENTS, env={**os.environ, "TZ": "UTC"}
        )
        try:
            yield browser
        finally:
            browser.close()


def open_page(context: BrowserContext, site: str) -> tuple[Page, list[str]]:
    """A page, and a list that gets all that must not happen on it.

    Requests to other hosts, requests that fail, errors and warnings of the console (breaches of the
    Content-Security-Policy are among them), uncaught exceptions, and dialogs.
    """
    complaints: list[str] = []

    def check_request(request: Request) -> None:
        if not request.url.startswith((f"{site}/", "data:")):
            complaints.append(f"request to {request.url}")

    def check_response(response: Response) -> None:
        if response.status >= 400:
            complaints.append(f"{response.status} of {response.url}")

    def check_failure(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by leaving the page
            complaints.append(f"{request.url}: {request.failure}")

    def check_console(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            complaints.append(f"{message.type}: {message.text}")

    def refuse_dialog(dialog: Dialog) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page = context.new_page()
    page.on("request", check_request)
    page.on("response", check_response)
    page.on("console", check_console)
    page.on("dialog", refuse_dialog)
    page.on("requestfailed", check_failure)
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    return page, complaints
