"""The dashboards: every query of them is run, on real metrics and on real books."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import yaml

from accounting.ops.monitoring.health import evaluate
from accounting.ops.monitoring.server import serve
from tests.support.books import READER, Books, channel, traffic_payload
from tests.support.deployments import COMPOSE, DEPLOY, compose
from tests.support.monitoring import (
    fill_every_metric,
    labels_of_metrics,
    read_snapshot,
    snapshot_reader,
)
from tests.support.prometheus import PrometheusServer
from tests.support.servers import ADDRESS, free_port, wait_until

GRAFANA: Final = DEPLOY / "grafana"
DASHBOARDS: Final[dict[str, dict[str, Any]]] = {
    path.stem: json.loads(path.read_text()) for path in (GRAFANA / "dashboards").glob("*.json")
}
UNITS: Final = {
    "none", "s", "bytes", "decbytes", "Bps", "cps", "percent", "percentunit", "dateTimeAsLocal",
}  # fmt: skip
"""Of Grafana's units, those that the dashboards use."""
SPAN: Final = ("2026-10-01T00:00:00Z", "2026-12-01T00:00:00Z")
REALMS: Final = ("example.org", "example.net", "it's")


def panels(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard that show something."""
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def expressions(name: str) -> Iterator[tuple[str, str]]:
    """Each query of Prometheus with the title of its panel."""
    for panel in panels(name):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def statements(name: str) -> Iterator[tuple[str, str, str]]:
    """Each query of Postgres: title, format and text."""
    dashboard = DASHBOARDS[name]
    for panel in panels(name):
        for target in panel["targets"]:
            yield panel["title"], target["format"], target["rawSql"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["target"]["format"], annotation["target"]["rawSql"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], "variable", variable["query"]


STATEMENTS: Final = list(statements("usage"))


def test_there_are_two_dashboards() -> None:
    assert DASHBOARDS.keys() == {"operations", "usage"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_has_a_title_a_description_and_a_unit(name: str) -> None:
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith(".")
        units = [panel["fieldConfig"]["defaults"]["unit"]]
        for override in panel["fieldConfig"]["overrides"]:
            units += [each["value"] for each in override["properties"] if each["id"] == "unit"]
        assert set(units) <= UNITS, panel["title"]
        assert panel["targets"]
    assert max(Counter(panel["title"] for panel in panels(name)).values()) == 1


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_installed_anywhere(name: str) -> None:
    """It has no numbers of the Grafana that it was made in, and its data source is a variable."""
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"turn-accounting-{name}"
    assert dashboard["schemaVersion"] >= 39
    assert not {"id", "version", "iteration", "gnetId", "__inputs"} & dashboard.keys()
    source, *variables = dashboard["templating"]["list"]
    assert source["type"] == "datasource"
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources.yaml").read_text())
    types = {each["uid"]: each["type"] for each in sources["datasources"]}
    assert types[source["current"]["value"]] == source["query"]
    wanted = {"type": source["query"], "uid": "${datasource}"}
    for each in (*panels(name), *variables, *dashboard["annotations"]["list"]):
        assert each["datasource"] == wanted
    known = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    used = re.findall(r"\$\{?(\w+)", json.dumps(dashboard))
    assert {name for name in used if not name.startswith("__time")} - {"__all"} <= known


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_numbers_and_places_of_their_own(name: str) -> None:
    every = DASHBOARDS[name]["panels"]
    assert [panel["id"] for panel in every] == list(range(1, len(every) + 1))
    places = [panel["gridPos"] for panel in every]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)


def test_compose_and_kustomize_bring_every_dashboard() -> None:
    mounted: dict[str, Path] = {}
    for volume in compose()["services"]["grafana"]["volumes"]:
        source, target, *_ = volume.split(":")
        mounted[target] = (COMPOSE / source).resolve()
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards.yaml").read_text())[
        "providers"
    ]
    assert mounted[provider["options"]["path"]] == GRAFANA / "dashboards"
    for kind in ("datasources", "dashboards"):
        target = f"/etc/grafana/provisioning/{kind}/turn-accounting.yaml"
        assert mounted[target] == GRAFANA / "provisioning" / f"{kind}.yaml"
    [generated] = yaml.safe_load((GRAFANA / "kustomization.yaml").read_text())["configMapGenerator"]
    assert {GRAFANA / path for path in generated["files"]} == set(
        (GRAFANA / "dashboards").iterdir()
    )


def test_every_query_uses_metrics_that_are_served(books: Books) -> None:
    fill_every_metric(books)
    known = labels_of_metrics(read_snapshot(books))
    shown = set()
    for _, query in expressions("operations"):
        metrics = set(re.findall(r"\bturn_accounting_\w+", query))
        assert metrics <= known.keys()
        shown |= metrics
        for by in re.findall(r"\bby \(([^)]+)\)", query):
            labels = set(by.split(", ")) | set(re.findall(r'(\w+)=~"', query))
            assert all(labels <= known[metric] for metric in metrics), query
    assert {name for name in known if not name.startswith("process_")} == shown
    for variable in DASHBOARDS["operations"]["templating"]["list"][1:]:
        _, metric, label, _ = re.split(r"[(), ]+", variable["query"])
        assert label in known[metric]


@pytest.mark.long
@pytest.mark.needs_prometheus
def test_every_query_of_metrics_has_a_result(books: Books) -> None:
    """A real Prometheus scrapes two processes: what both serve is counted once."""
    fill_every_metric(books)
    port = free_port()
    with (
        snapshot_reader(books) as reader,
        serve(f"{ADDRESS}:{port}", reader.read, lambda each: evaluate(each, captures=True)),
        PrometheusServer(f"{ADDRESS}:{port}", f"localhost:{port}") as prometheus,
    ):
        wait_until(lambda: len(prometheus.query("up == 1")) == 2, 20, "nothing is scraped")
        wait_until(lambda: prometheus.query("ALERTS"), 20, "no alert is evaluated")
        rate = "rate(turn_accounting_job_runs_total[1m])"
        wait_until(lambda: len(prometheus.query(rate)) == 2, 20, "too few scrapes")
        for title, expression in expressions("operations"):
            text = expression.replace("$source", "default").replace("$realm", "example.org")
            samples = prometheus.query(text.replace("$__rate_interval", "1m"))
            assert samples or "turn_accounting_cell_" in text, (title, expression)  # no front
            if not expression.startswith("ALERTS"):
                labels = {label for sample in samples for label in sample["metric"]}
                assert not labels & {"instance", "job"}, expression
        live = dict(expressions("operations"))["Live sessions"].replace("$realm", ".*")
        assert [sample["value"][1] for sample in prometheus.query(live)] == ["1"]
        for variable in DASHBOARDS["operations"]["templating"]["list"][1:]:
            _, metric, label, _ = re.split(r"[(), ]+", variable["query"])
            assert prometheus.get(f"label/{label}/values", **{"match[]": metric})
        [group] = prometheus.get("rules")["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}


def as_grafana_sends(statement: str, realms: Sequence[str] = REALMS) -> str:
    """The statement with its macros and variables replaced."""
    start, end = (f"'{each}'" for each in SPAN)
    quoted = ",".join("'" + realm.replace("'", "''") + "'" for realm in realms)
    text = re.sub(r"\$__timeFilter\(([^)]+)\)", rf"\1 BETWEEN {start} AND {end}", statement)
    text = text.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    text = text.replace("${realm:sqlstring}", quoted)
    assert "$" not in text, text
    return text


def run(books: Books, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of the columns and the rows, as the reader gets them."""
    with psycopg.connect(books.url(READER)) as connection:
        cursor = connection.execute(statement.encode())
        assert cursor.description is not None
        return [column.name for column in cursor.description], cursor.fetchall()


@pytest.mark.parametrize(
    ("title", "form", "statement"), STATEMENTS, ids=[each[0] for each in STATEMENTS]
)
def test_every_query_of_the_books_has_a_result(
    sample_books: Books, title: str, form: str, statement: str
) -> None:
    columns, rows = run(sample_books, as_grafana_sends(statement))
    assert rows
    assert len(set(columns)) == len(columns)
    run(sample_books, as_grafana_sends(statement, realms=()))  # of books that are empty yet
    if form == "time_series":  # what Grafana can draw
        assert columns[:2] == ["time", "metric"]
        assert len(columns) == 3
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        assert len({row[:2] for row in rows}) == len(rows)
        assert all(row[1] for row in rows)
    overrides = {
        override["matcher"]["options"]
        for panel in panels("usage")
        if panel["title"] == title
        for override in panel["fieldConfig"]["overrides"]
    }
    assert overrides <= set(columns)


def test_the_panels_agree_with_the_books(sample_books: Books) -> None:
    """Usage by hour, day, server and transport are the same bytes: those of the sessions."""
    by_title = {title: as_grafana_sends(text) for title, _, text in STATEMENTS}
    sums = sample_books.view_sums("sessions")
    total = sums["received_bytes"] + sums["sent_bytes"]
    assert run(sample_books, by_title["Usage"])[1] == [(total,)]
    for title in ("Usage by hour", "Usage by day", "Usage by server", "Usage by transport"):
        assert sum(row[2] for row in run(sample_books, by_title[title])[1]) == total, title
    columns, users = run(sample_books, by_title["Top users"])
    assert sum(row[columns.index("bytes")] for row in users) == total
    assert users == sorted(users, key=itemgetter(columns.index("bytes")), reverse=True)


@pytest.mark.parametrize("realm", ["example.org", ""])
def test_a_realm_where_nobody_authenticates_is_shown(books: Books, realm: str) -> None:
    """As with a shared secret that differs: such a realm has no usage, and can be chosen."""
    books.start = datetime(2026, 11, 2, 12, tzinfo=UTC)
    payload = traffic_payload(1, 2, 1, 3)
    books.receive(0, channel("traffic", user="mallory", realm=realm), payload)
    books.advance_clock(1)
    books.run_jobs()
    by_title = {title: text for title, _, text in STATEMENTS}
    realms = [row[0] for row in run(books, by_title["realm"])[1]]
    assert realms == [realm]
    [(_, name, used)] = run(books, as_grafana_sends(by_title["Unattributed usage"], realms))[1]
    assert (bool(name), used) == (True, 5)
    [row] = run(books, as_grafana_sends(by_title["Names that never authenticated"], realms))[1]
    assert row[:3] == (realm, "mallory", 5)


def test_the_load_of_a_server_is_that_of_all_its_realms(sample_books: Books) -> None:
    columns, rows = run(
        sample_books,
        as_grafana_sends({title: text for title, _, text in STATEMENTS}["Servers now"]),
    )
    servers = [row[columns.index("server")] for row in rows]
    assert len(set(servers)) == len(servers)
    live = sum(row[columns.index("live sessions")] for row in rows)
    assert live == sum(row["live_sessions"] for row in sample_books.rows("rates"))
