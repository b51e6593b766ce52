"""The pages in a real browser, on books with rows of every kind and with names that mean harm."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.support.books import WRITER, Books, channel, status_payload, traffic_payload
from tests.support.browser import chromium, open_page
from tests.support.command import turn_accounting
from tests.support.sample_books import DAY, HOUR, open_sample_books
from tests.support.servers import PostgresServer, free_port
from tests.support.service import SERVICE, Service

pytestmark = pytest.mark.needs_chromium

IMAGE: Final = "<img src=x onerror=alert(1)>"
QUOTED: Final = f'">{IMAGE}'
BOLD: Final = "<b>realm<b>"
ARABIC: Final = "\u0645\u0633\u062a\u062e\u062f\u0645"
TURNED: Final = "abc\u202efdp.exe"
TERMINAL: Final = "\x1b[2J\x1b]0;owned\x07"
MANY: Final = 120
"""Sessions of one user: three pages."""
PHONE: Final = ViewportSize(width=360, height=740)
DESKTOP: Final = ViewportSize(width=1280, height=900)
MOST_BYTES: Final = 150_000
"""Of one page with everything that it loads, uncompressed."""
KEY: Final = re.compile(r"/[0-9a-f-]{36}")
REFRESH_MILLISECONDS: Final = 11_000

CHARTS: Final = """() => [...document.querySelectorAll("figure.chart canvas")].map((canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const brush = copy.getContext("2d", {willReadFrequently: true});
    brush.drawImage(canvas, 0, 0);
    const {data} = brush.getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
})"""
"""The number of colours of each canvas; one of an empty canvas."""
AXE: Final = """async () => (await axe.run({resultTypes: ["violations"]})).violations.flatMap(
    ({id, nodes}) => nodes.map(({html, failureSummary}) => `${id}: ${html}: ${failureSummary}`))"""
SIDEWAYS: Final = (
    "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
)


OpenPage = tuple[Page, list[str]]
"""As ``open_page`` returns it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server. ``address``: without a slash at its end; ``books``: what it reads."""

    address: str
    books: Books


@pytest.fixture(scope="module")
def site(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The command ``serve``, on the sample books and more; the tests only read them."""
    directory: Path = tmp_path_factory.mktemp("browser")
    with open_sample_books(postgres_server, directory / "books") as books:
        _add_sessions(books)
        with serving(books, directory) as address:
            yield Site(address=address, books=books)


@pytest.fixture(scope="module")
def site_with_log_in(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same books, for those who have a token."""
    directory = tmp_path_factory.mktemp("log-in")
    with serving(site.books, directory, ACCOUNTING_WEB_LOGIN="required") as address:
        yield Site(address=address, books=site.books)


@contextmanager
def serving(books: Books, directory: Path, **settings: str) -> Iterator[str]:
    """The command ``serve``; yields its address."""
    listen = f"127.0.0.1:{free_port()}"
    settings |= {"ACCOUNTING_DATABASE_URL": books.url(WRITER), "ACCOUNTING_WEB_LISTEN": listen}
    with Service("serve", directory / "serve", settings, module=SERVICE) as serve:
        serve.wait_for(lambda: "serving on" in serve.log_text())
        yield f"http://{listen}"


def _add_sessions(books: Books) -> None:
    """Hostile names, and so many sessions of one user that they need pages."""
    begin = 3.5 * DAY + HOUR
    names = [(IMAGE, "example.org"), (ARABIC, "example.org"), (TURNED, "example.org"),
             (TERMINAL, "example.org"), ("dave", BOLD), ("", "example.net")]  # fmt: skip
    names += [("erin", "example.org")] * MANY
    for number, (user, realm) in enumerate(names):
        counts = traffic_payload(4_000, 3_000_000 + number, 96, 1_000_000)
        for seconds, kind, payload in (
            (0, "status", status_payload("new")),
            (1, "traffic", counts),
            (2, "status", status_payload("deleted")),
            (2, "total_traffic", counts),
        ):
            name = channel(kind, user=user, realm=realm, allocation=1_000 + number)
            books.receive(begin + number + seconds, name, payload, source="second")
    books.advance_clock(3.5 * DAY + 2 * HOUR, source="second")
    books.run_jobs()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared_page(browser: Browser, site: Site) -> Iterator[OpenPage]:
    with browser.new_context() as context:
        yield open_page(context, site.address)


@pytest.fixture
def desktop(shared_page: OpenPage) -> OpenPage:
    """A page without complaints; a new context takes longer than some tests."""
    page, complaints = shared_page
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")
    complaints.clear()
    return page, complaints


@pytest.fixture
def phone(desktop: OpenPage) -> OpenPage:
    desktop[0].set_viewport_size(PHONE)
    return desktop


def shape_of(address: str) -> str:
    """What page an address is of: its path with keys left out, and the names of its parameters."""
    parts = urlsplit(address)
    path = KEY.sub("/{key}", parts.path)
    return f"{path}?{'&'.join(sorted(name for name, _ in parse_qsl(parts.query)))}"


def follow_links(page: Page, start: str) -> dict[str, int]:
    """Visit a page of each kind, and read all data that they link to.

    Returns the number of charts by the kind of page.
    """
    charts: dict[str, int] = {}
    read: set[str] = set()
    waiting = [start]
    while waiting:
        address = waiting.pop()
        shape = shape_of(address)
        if "/api/" in address and shape not in read:
            read.add(shape)
            answer = page.request.get(address)
            assert answer.status == 200, address
            kind = "text/csv" if "format=csv" in address else "application/json"
            assert answer.headers["content-type"].startswith(kind), address
        elif "/api/" not in address and shape not in charts:
            page.goto(address)
            assert wrong_drawings(page) == [], address
            charts[shape] = len(page.evaluate(CHARTS))
            waiting += page.eval_on_selector_all(
                "a[href]:not([download])", "links => links.map(link => link.href.split('#')[0])"
            )
    assert any("format" in shape for shape in read)
    return charts


def paths_of(shapes: Iterable[str]) -> set[str]:
    return {shape.partition("?")[0] for shape in shapes}


def wrong_drawings(page: Page) -> list[str]:
    """What is wrong with a page as it is drawn now."""
    wrong = []
    if page.evaluate(SIDEWAYS) > 0:
        wrong.append("it scrolls sideways")
    if any(colours < 5 for colours in page.evaluate(CHARTS)):
        wrong.append("a chart is blank")
    return wrong


def checked_pages(books: Books) -> list[str]:
    """An address of each kind of page, with rows."""
    [alice] = books.rows("statements WHERE user_id = 'alice'", "user_key::text")
    [disputed] = books.rows("sessions WHERE disputed", "session_id::text")
    return [
        "/",
        "/realm?realm=example.org",
        "/unattributed?realm=example.org",
        f"/user/{alice['user_key']}",
        "/realms",
        "/sessions?user=bob",
        f"/session/{disputed['session_id']}",
        "/periods",
        "/statement?realm=example.org&period=2026-10-01",
        "/statement?realm=example.org&period=2026-11-01",
        "/limits?realm=example.org",
        "/gaps",
    ]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_every_page_is_accessible_in_both_schemes_and_at_both_widths(
    desktop: OpenPage, site: Site, step: int
) -> None:
    """axe-core has no complaint about a page of each kind, and about what is wrong."""
    paths = ["/sessions?since=never", *checked_pages(site.books)]
    problems: dict[str, list[str]] = {}
    page, complaints = desktop
    for path in paths[::step]:
        page.set_viewport_size(DESKTOP)
        page.emulate_media(color_scheme="light")
        page.goto(site.address + path)
        page.evaluate(AXE_SCRIPT)
        problems[f"{path} light"] = page.evaluate(AXE) + wrong_drawings(page)
        page.emulate_media(color_scheme="dark")
        problems[f"{path} dark, wide"] = wrong_drawings(page)
        page.set_viewport_size(PHONE)
        problems[f"{path} dark"] = page.evaluate(AXE) + wrong_drawings(page)
        page.emulate_media(color_scheme="light")
        problems[f"{path} light, narrow"] = wrong_drawings(page)
    assert {name: found for name, found in problems.items() if found} == {}
    assert [text for text in complaints if "400" not in text] == []


@pytest.mark.long
def test_every_link_leads_to_a_page_or_to_its_data(phone: OpenPage, site: Site) -> None:
    """From the overview on; the test above checks a page of each kind that is found."""
    paths = {urlsplit(path).path for path in checked_pages(site.books)}
    page, complaints = phone
    charts = follow_links(page, f"{site.address}/")
    assert complaints == []
    assert paths_of(charts) == {KEY.sub("/{key}", path) for path in paths}
    drawn = {shape: number for shape, number in charts.items() if number}
    assert paths_of(drawn) == {"/", "/realm", "/user/{key}"}


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        pytest.param(
            "--realm example.org",
            {
                "/",
                "/realm",
                "/unattributed",
                "/user/{key}",
                "/sessions",
                "/session/{key}",
                "/periods",
                "/statement",
                "/limits",
            },
            marks=pytest.mark.long,
        ),
        (
            "--realm example.org --user alice",
            {"/", "/user/{key}", "/sessions", "/session/{key}", "/statement"},  # / leads on
        ),
    ],
)
def test_a_customer_logs_in_and_every_link_is_their_own(
    browser: Browser, site_with_log_in: Site, arguments: str, paths: set[str]
) -> None:
    site = site_with_log_in
    created = turn_accounting(
        "token", "create", *arguments.split(), database_url=site.books.url(WRITER)
    )
    assert created.code == 0, created.err
    with browser.new_context(viewport=PHONE) as context:
        page, complaints = open_page(context, site.address)
        page.goto(site.address)
        page.evaluate(AXE_SCRIPT)
        assert page.evaluate(AXE) + wrong_drawings(page) == []
        page.get_by_label("Token").fill("ta_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not valid")
        assert complaints != []  # the console says that it was refused
        complaints.clear()
        page.get_by_label("Token").fill(created.out.strip())
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        assert paths_of(follow_links(page, page.url)) == paths
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        page.goto(f"{site.address}/sessions")
        expect(page.get_by_label("Token")).to_be_visible()
        assert complaints == []


@pytest.mark.long
def test_a_click_leads_from_the_overview_to_a_report_and_its_position(
    desktop: OpenPage, site: Site
) -> None:
    [session] = site.books.rows("sessions WHERE disputed", "session_id::text")
    [report] = site.books.rows("traffic_reports WHERE received_bytes = 50000", "epoch, position")
    page, complaints = desktop
    page.goto(site.address)
    page.get_by_role("table").get_by_role("link", name="example.org").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("example.org")
    page.get_by_role("table", name="Users by their traffic").get_by_role("link", name="bob").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("bob")
    page.locator(f"a[href$='/session/{session['session_id']}']").click()
    expect(page.get_by_text("Disputed:")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="50.0 kB")).to_contain_text(
        f"position {report['epoch']}/{report['position']}"
    )
    assert complaints == []


@pytest.mark.parametrize(
    "kind", ["statements", pytest.param("adjustments", marks=pytest.mark.long)]
)
def test_a_download_has_the_bytes_of_export(
    desktop: OpenPage, site: Site, tmp_path: Path, kind: str
) -> None:
    page, complaints = desktop
    page.goto(f"{site.address}/statement?realm=example.org&period=2026-10-01")
    for form in ("csv", "jsonl", "parquet"):
        with page.expect_download() as download:
            page.locator(f"a[download][href*='export={kind}'][href*='format={form}']").click()
        downloaded = download.value.path().read_bytes()
        result = turn_accounting(
            "export", kind, "--realm", "example.org", "--period", "2026-10-01",
            "--format", form, "--output", str(tmp_path), database_url=site.books.url(WRITER),
        )  # fmt: skip
        assert result.code == 0, result.err
        exported = tmp_path / download.value.suggested_filename
        assert downloaded == exported.read_bytes()
    assert complaints == []


@pytest.mark.parametrize(
    "names",
    [
        [IMAGE],
        pytest.param(
            [ARABIC, "abc\\u202efdp.exe", "\\x1b[2J\\x1b]0;owned\\x07"], marks=pytest.mark.long
        ),
    ],
    ids=["markup", "others"],
)
def test_a_hostile_name_is_text(desktop: OpenPage, site: Site, names: list[str]) -> None:
    """No element comes of it, nothing runs, and what would change the direction is visible."""
    page, complaints = desktop
    page.goto(f"{site.address}/realm?realm=example.org")
    users = page.get_by_role("table", name="Users by their traffic")
    for shown in names:
        users.get_by_role("link", name=shown, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(shown)
        expect(page).to_have_title(f"{shown} - turn-accounting")
        assert page.locator("img, b:not(.timeline b, .warning b)").count() == 0
        page.go_back()
    page.goto(site.address)
    page.get_by_role("link", name=BOLD, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(BOLD)
    assert complaints == []


def test_a_hostile_parameter_is_text(desktop: OpenPage, site: Site) -> None:
    page, complaints = desktop
    page.goto(f"{site.address}/sessions?{urlencode({'since': QUOTED})}")
    expect(page.get_by_label("Open since")).to_have_value(QUOTED)
    for name in ("since", "user", "realm"):
        page.goto(f"{site.address}/sessions?{urlencode({name: QUOTED})}")
        expect(page.locator("main")).to_contain_text(QUOTED)
        assert page.locator("img").count() == 0
    refusals = re.compile("400|404")  # the names are unknown, and the time is none
    assert [text for text in complaints if not refusals.search(text)] == []


@pytest.mark.parametrize("reads_all", [False, pytest.param(True, marks=pytest.mark.long)])
def test_everything_but_charts_works_without_scripts(
    browser: Browser, site: Site, reads_all: bool
) -> None:
    with browser.new_context(viewport=DESKTOP, java_script_enabled=False) as context:
        page, complaints = open_page(context, site.address)
        page.goto(site.address)
        page.get_by_role("table").get_by_role("link", name="example.org").click()
        expect(page.locator("canvas")).to_have_count(0)
        page.get_by_text("Figures of the chart").click()
        expect(page.get_by_role("table", name="Traffic and peak")).to_be_visible()
        page.get_by_role("link", name="Sessions", exact=True).click()
        page.get_by_label("User").fill("erin")
        page.get_by_label("Open since").fill("2026-11")
        page.get_by_role("button", name="Show").click()
        pages = []
        while True:
            table = page.get_by_role("table", name="Sessions")
            pages.append(table.get_by_role("row").count() - 1)
            expect(table.get_by_role("link", name="bob")).to_have_count(0)
            older = page.get_by_role("link", name="Older sessions")
            if not older.count() or (len(pages) == 2 and not reads_all):
                break
            older.click()
        assert sum(pages) == MANY if reads_all else pages[0] == pages[1] < MANY
        assert complaints == []


def test_the_keyboard_reaches_the_content_and_its_tables(phone: OpenPage, site: Site) -> None:
    page, complaints = phone
    page.goto(site.address)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        if reached[-1] == "Realms":
            break
    assert reached[-1] == "Realms"
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="example.org")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("example.org")
    assert complaints == []


def test_live_figures_refresh_by_themselves(browser: Browser, site: Site) -> None:
    with browser.new_context(viewport=DESKTOP) as context:
        page, complaints = open_page(context, site.address)
        page.clock.install()
        page.goto(site.address)
        link = page.get_by_role("link", name="open now")
        link.focus()
        for _ in range(2):  # the second answer comes after the first was shown
            with page.expect_response(f"{site.address}/now") as answer:
                page.clock.fast_forward(REFRESH_MILLISECONDS)
            assert answer.value.ok
        expect(link).to_be_focused()
        expect(page.get_by_text("Live sessions")).to_have_count(1)
        assert complaints == []


def test_a_phone_shows_whose_a_session_is_without_scrolling(phone: OpenPage, site: Site) -> None:
    page, _ = phone
    page.goto(f"{site.address}/sessions?user=alice")
    box = page.get_by_role("group", name="Sessions", exact=True).bounding_box()
    user = page.locator("td", has=page.get_by_role("link", name="alice")).first.bounding_box()
    assert box is not None
    assert user is not None
    assert user["x"] + user["width"] <= box["x"] + box["width"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/", marks=pytest.mark.long),
        pytest.param("/realm?realm=example.org", marks=pytest.mark.long),  # the largest
        "/sessions",
    ],
)
def test_a_page_is_small_with_everything_that_it_loads(
    browser: Browser, site: Site, path: str
) -> None:
    with browser.new_context(viewport=DESKTOP) as context:  # nothing is cached
        page, complaints = open_page(context, site.address)
        sizes: list[int] = []
        page.on("response", lambda response: sizes.append(len(response.body())))
        page.goto(site.address + path, wait_until="networkidle")
        assert sum(sizes) < MOST_BYTES
        assert complaints == []
