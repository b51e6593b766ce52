"""The alerts: each fires when it should, uses metrics that are served, and is described."""

import re
import subprocess
from typing import Any, Final

import pytest
import yaml

from accounting.ops.monitoring.health import (
    BURST_NAMES,
    BURST_RATIO,
    CELL_FAILING_SECONDS,
    MAX_BLOCKED_SECONDS,
    MAX_CAPTURE_LAG_SECONDS,
    MAX_CLOCK_ERROR_SECONDS,
    MAX_STAGE_LAG_SECONDS,
    WEBHOOK_FAILING_SECONDS,
)
from accounting.ops.registry import JOBS
from tests.support.books import Books
from tests.support.deployments import DEPLOY
from tests.support.monitoring import fill_every_metric, labels_of_metrics, read_snapshot

ROOT: Final = DEPLOY.parent
UNIT_TESTS: Final = ROOT / "tests" / "data" / "prometheus" / "alerts.yaml"
FIRING: Final = 'ALERTS{alertstate="firing"}'


def rules() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    [group] = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def unit_tests() -> list[dict[str, Any]]:
    return list(yaml.safe_load(UNIT_TESTS.read_text())["tests"])


@pytest.mark.needs_prometheus
def test_the_alerts_fire_when_they_should() -> None:
    """And at no other moment of the unit tests."""
    done = subprocess.run(
        ["promtool", "test", "rules", UNIT_TESTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires_and_does_not() -> None:
    assert [test["name"] for test in unit_tests()] == list(rules())
    for test in unit_tests():
        name = f'alertname="{test["name"]}"'
        checks = test["promql_expr_test"]
        assert {check["expr"] for check in checks} == {FIRING}
        fired = [check for check in checks if check.get("exp_samples")]
        assert 0 < len(fired) < len(checks), test["name"]
        assert all(name in sample["labels"] for check in fired for sample in check["exp_samples"])


def test_every_alert_uses_metrics_that_are_served(books: Books) -> None:
    """An alert with a misspelled metric or label would never fire; its unit test would pass."""
    fill_every_metric(books)
    known = labels_of_metrics(read_snapshot(books))
    for name, rule in rules().items():
        used = set(re.findall(r"\bturn_accounting_\w+", rule["expr"]))
        assert used, name
        assert used <= known.keys(), name
    for test in unit_tests():
        for series in test["input_series"]:
            metric, _, labels = series["series"].partition("{")
            assert set(re.findall(r"(\w+)=", labels)) - {"instance"} == known[metric], series


def test_every_alert_is_described() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(rules())
    for name, rule in rules().items():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"


def test_the_alerts_have_the_thresholds_of_health() -> None:
    for name, threshold in (
        ("Lags", f"> {MAX_CAPTURE_LAG_SECONDS}"),
        ("Lags", f"> {MAX_STAGE_LAG_SECONDS}"),
        ("ClockOff", f"> {MAX_CLOCK_ERROR_SECONDS:.0f}"),
        ("JobBlocked", f"> {MAX_BLOCKED_SECONDS}"),
        ("WebhookFailing", f"> {WEBHOOK_FAILING_SECONDS}"),
        ("CellAway", f"> {CELL_FAILING_SECONDS}"),
        ("FailedClients", f">= {BURST_NAMES}"),
        ("FailedClients", f"- {BURST_RATIO} *"),
    ):
        expression = rules()[f"TurnAccounting{name}"]["expr"]
        assert re.search(rf"{re.escape(threshold)}(?!\d)", expression), name


def test_an_overdue_job_is_one_that_runs_more_often() -> None:
    expression = rules()["TurnAccountingJobOverdue"]["expr"]
    [most, hourly] = re.findall(r'name[!=]~"([^"]+)"', expression)
    every_hour = {job.name for job in JOBS.values() if job.every_seconds > 60}
    endless = {job.name for job in JOBS.values() if job.run_until is not None}
    assert set(hourly.split("|")) == every_hour
    assert set(most.split("|")) == every_hour | endless
