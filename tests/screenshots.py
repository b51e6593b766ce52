"""``make screenshots``: pictures of the pages and a frame of ``top``, for README.md and docs/.

It serves the books of :mod:`tests.support.month_of_calls` and writes docs/images/. The pictures
have a palette of 256 colours, so that they are small.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, ViewportSize

from accounting.domain.human_text import human_bytes
from tests.support.books import WRITER, Books, make_template
from tests.support.browser import chromium, open_page
from tests.support.command import turn_accounting_on_terminal
from tests.support.month_of_calls import open_month_of_calls
from tests.support.servers import PostgresServer, free_port
from tests.support.service import SERVICE, Service

IMAGES: Final = Path(__file__).resolve().parents[1] / "docs" / "images"
MOST_BYTES: Final = 150_000
DESKTOP: Final = ViewportSize(width=1120, height=900)
PHONE: Final = ViewportSize(width=375, height=1100)
REALM: Final = "meet.example.com"


class Picture(NamedTuple):
    """A file's name without its ending, and the page that it shows."""

    name: str
    path: str
    viewport: ViewportSize = DESKTOP
    scheme: Literal["light", "dark"] = "light"


def main() -> None:
    """Write every picture and the frame."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="ta-pictures-") as directory,
        PostgresServer() as server,
    ):
        make_template(server)
        with open_month_of_calls(server, Path(directory, "books")) as books:
            write_frame(books)
            listen = f"127.0.0.1:{free_port()}"
            settings = {
                "ACCOUNTING_DATABASE_URL": books.url(WRITER),
                "ACCOUNTING_WEB_LISTEN": listen,
            }
            with (
                Service("serve", Path(directory, "serve"), settings, module=SERVICE) as serve,
                chromium() as browser,
            ):
                serve.wait_for(lambda: "serving on" in serve.log_text())
                for picture in pictures(books):
                    take(browser, f"http://{listen}", picture)


def pictures(books: Books) -> list[Picture]:
    """The pages with most in them."""
    [user] = books.query(
        "SELECT user_key FROM reporting.user_usage_monthly WHERE realm = %s"
        " GROUP BY user_key ORDER BY sum(received_bytes) DESC LIMIT 1",
        [REALM],
    )
    [session] = books.query(
        "SELECT session_id FROM reporting.sessions WHERE estimated ORDER BY received_bytes LIMIT 1"
    )
    return [
        Picture("overview", "/"),
        Picture("overview-dark", "/", scheme="dark"),
        Picture("realm", f"/realm?realm={REALM}"),
        Picture("realm-phone", f"/realm?realm={REALM}", PHONE),
        Picture("user", f"/user/{user['user_key']}"),
        Picture("session", f"/session/{session['session_id']}"),
        Picture("statement", f"/statement?realm={REALM}&period=2026-10-01"),
    ]


def take(browser: Browser, site: str, picture: Picture) -> None:
    """Write one picture of the upper part of a page."""
    with browser.new_context(viewport=picture.viewport, color_scheme=picture.scheme) as context:
        page, complaints = open_page(context, site)
        page.goto(site + picture.path, wait_until="networkidle")
        shot = page.screenshot()
    assert complaints == [], complaints
    path = IMAGES / f"{picture.name}.png"
    with Image.open(io.BytesIO(shot)) as image:
        few = image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        few.save(path, optimize=True)
    size = path.stat().st_size
    assert size < MOST_BYTES, (path, size)
    sys.stdout.write(f"{path.name}: {human_bytes(size)}\n")


def write_frame(books: Books) -> None:
    """Write what ``top`` shows on a terminal."""
    frame = turn_accounting_on_terminal(
        "top", "--once", columns=100, database_url=books.url(WRITER)
    )
    path = IMAGES / "top.txt"
    path.write_text(frame)
    sys.stdout.write(f"{path.name}: {human_bytes(path.stat().st_size)}\n")


if __name__ == "__main__":
    main()
