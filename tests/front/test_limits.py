"""Limits of a front: what users and realms have used in all cells, as one database would say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from accounting.db.queries import Queries
from accounting.errors import AccountingError
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.limits.check_limits import check_front_limits
from accounting.front.limits.evaluate_limits import USAGE_OF_CELLS, evaluate_limits
from accounting.front.verify import verify_installation
from accounting.usage.limits.limit_rules import remove_limit, set_limit
from tests.support.books import channel, status_payload, traffic_payload
from tests.support.fronts import Front, emptied, open_front
from tests.support.limit_plays import LIMIT_EVENTS, limit_states
from tests.support.servers import PostgresServer

HOUR, DAY = 3600, 86_400


@pytest.fixture(scope="module")
def shared_front(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path_factory.mktemp("limits")) as front:
        yield front


@pytest.fixture
def front(shared_front: Front, tmp_path: Path) -> Iterator[Front]:
    """Alice has a session in each cell; the realm is known to the front."""
    with emptied(shared_front, tmp_path) as front:
        for number, cell in enumerate(front.cells):
            name = channel("status", allocation=number)
            front.receive(cell, number, name, status_payload("new", 40 * DAY))
        run(front, 10)
        yield front


def run(front: Front, seconds: float) -> None:
    """Run the jobs of all cells and of the front, so many seconds after the start."""
    front.advance_clocks(seconds)
    front.run_jobs()
    copy_billing(front.books.engine)
    evaluate_limits(front.books.engine)


def use(front: Front, cell: str, seconds: float, received: int, **of: Any) -> None:
    """Receive so many bytes in a cell, in alice's session unless another is named."""
    number = list(front.cells).index(cell)
    name = channel("traffic", **({"allocation": number} | of))
    front.receive(cell, seconds, name, traffic_payload(1, received, 0, 0))


def begin(front: Front, cell: str, user: str, allocation: int) -> None:
    """A session of another user."""
    name = channel("status", user=user, allocation=allocation)
    front.receive(cell, 11, name, status_payload("new", DAY))


def limit(front: Front, **options: Any) -> None:
    """Set a limit on the front and in the whole, by default 1,000 bytes a month for every user."""
    chosen: dict[str, Any] = {"measure": "bytes", "per": "month", "amount": 1000}
    chosen |= {"every_user": "user" not in options} | options
    on_front = set_limit(front.books.engine, "example.org", **chosen, usage=USAGE_OF_CELLS)
    assert on_front == set_limit(front.whole.engine, "example.org", **chosen)


def assert_as_whole(front: Front) -> None:
    """States, events and what is used are those of one database."""
    assert limit_states(front.books) == limit_states(front.whole)
    assert front.books.query(LIMIT_EVENTS) == front.whole.query(LIMIT_EVENTS)
    order = "limit_id, user_key"
    assert front.rows("limit_usage", order=order) == front.whole.rows("limit_usage", order=order)
    assert list(check_front_limits(front.books.engine)) == []


def events(front: Front) -> list[tuple[str, int]]:
    return [(row["type"], row["payload"]["usage"]) for row in front.books.query(LIMIT_EVENTS)]


def test_a_user_who_roams_has_one_limit(front: Front) -> None:
    limit(front, warnings=[50])
    use(front, "north", 20, 300)
    use(front, "south", 21, 300)
    run(front, 30)
    assert events(front) == [("limit.reached", 600)]
    use(front, "west", 40, 400)
    run(front, 50)
    assert events(front) == [("limit.reached", 600), ("limit.reached", 1000)]
    assert_as_whole(front)


def test_each_measure_and_whom_is_limited(front: Front) -> None:
    """Alice receives 900 bytes in three sessions of 20, 21 and 22 seconds, and bob 100 bytes."""
    for per in ("hour", "day", "month", "period"):
        for measure, amount, more in (
            ("bytes", 900, {"direction": "received"}),
            ("bytes", 1, {"direction": "sent"}),
            ("sessions", 3, {}),
            ("session_seconds", 60, {}),
            ("bytes", 900, {"user": "alice"}),
            ("bytes", 1000, {"every_user": False}),
            ("session_seconds", 79, {"every_user": False}),
        ):
            limit(front, per=per, measure=measure, amount=amount, **more)
    begin(front, "south", "bob", 9)
    for second, cell in enumerate(front.cells, 20):
        use(front, cell, second, 300)
    use(front, "south", 30, 100, user="bob", allocation=9)
    run(front, 31)
    assert sorted(usage for _, usage in events(front)) == sorted([900, 3, 60, 900, 1000, 79] * 4)
    assert_as_whole(front)


def test_a_correction_in_one_cell_clears_and_more_usage_in_another_reaches_again(
    front: Front,
) -> None:
    limit(front)
    use(front, "north", 20, 600)
    use(front, "south", HOUR, 600)
    run(front, HOUR + 1)
    front.receive("south", HOUR + 2, channel("status", allocation=1), status_payload("deleted"))
    total = channel("total_traffic", allocation=1)
    front.receive("south", HOUR + 3, total, traffic_payload(2, 100, 0, 0))
    run(front, HOUR + 10)
    use(front, "west", HOUR + 20, 300)
    run(front, HOUR + 30)
    assert events(front) == [
        ("limit.reached", 1200), ("limit.cleared", 700), ("limit.reached", 1000)
    ]  # fmt: skip
    assert_as_whole(front)


def test_late_usage_of_a_cell_counts_in_the_bucket_that_is_over(front: Front) -> None:
    limit(front, per="hour")
    use(front, "north", 20, 600)
    use(front, "north", 5 * HOUR, 600)
    for books in (front.cells["north"], front.whole):
        books.advance_clock(6 * HOUR, source="north")
    front.run_jobs()
    evaluate_limits(front.books.engine)
    assert events(front) == []
    use(front, "west", 30, 400)
    run(front, 40)
    assert events(front) == [("limit.reached", 1000)]
    assert_as_whole(front)


def test_a_limit_counts_what_is_used_and_changes_and_is_removed(front: Front) -> None:
    use(front, "north", 20, 900)
    run(front, 30)
    limit(front, warnings=[50])
    assert [row["user_id"] for row in front.rows("limit_states")] == ["alice"]
    limit(front, amount=800)
    limit(front, user="alice", amount=500, per="hour")
    assert_as_whole(front)
    assert [type_ for type_, _ in events(front)] == [
        "limit.reached", "limit.cleared", "limit.reached", "limit.reached"
    ]  # fmt: skip
    for number in (1, 2):
        cleared = remove_limit(front.books.engine, number, usage=USAGE_OF_CELLS)
        assert cleared == remove_limit(front.whole.engine, number) == 1
    assert_as_whole(front)
    assert front.rows("limits") == []


def test_the_users_nearest_to_a_limit_are_first(front: Front) -> None:
    """They are not the first in any cell."""
    for number, (user, cells) in enumerate(
        {"b": "north", "c": "south", "d": "west", "roamer": "north south west"}.items(), 10
    ):
        for cell in cells.split():
            begin(front, cell, user, number)
            received = 40 if user == "roamer" else 90 + number
            use(front, cell, 20, received, user=user, allocation=number)
    run(front, 29)
    for measure, per, whose in (
        ("bytes", "day", {}), ("bytes", "period", {"user": "b"}), ("sessions", "hour", {}),
        ("session_seconds", "month", {}), ("bytes", "month", {"every_user": False}),
    ):  # fmt: skip
        limit(front, measure=measure, per=per, **whose)
    run(front, 30)
    for number in range(1, 6):
        for most in ("NULL", "1", "2", "9"):
            call = f"nearest_to_limit({number}, {most})"
            rows = front.rows(call, order="usage DESC, user_key")
            assert rows == front.whole.rows(call, order="usage DESC, user_key")
    assert front.rows("nearest_to_limit(1, 1)", "user_id") == [{"user_id": "roamer"}]


def test_cells_are_asked_only_for_users_with_a_share_of_the_limit(front: Front) -> None:
    limit(front, warnings=[30])
    limit(front, measure="sessions", amount=9)
    limit(front, per="period")
    for per, level in (("month", "month"), ("period", "day")):
        [row] = front.books.query(
            "SELECT accounting.limit_candidates_query(realm_id, %s, '2026-11-01Z', '2026-12-01Z')"
            " AS query FROM accounting.realms WHERE realm = 'example.org'",
            [per],
        )
        plan = "\n".join(
            line["QUERY PLAN"]
            for line in front.books.query(f"EXPLAIN (VERBOSE, COSTS OFF) {row['query']}")
        )
        remote = [line for line in plan.splitlines() if "Remote SQL" in line]
        assert len(remote) == 3
        assert plan.count("Async Foreign Scan") == 3
        for line in remote:
            assert "GROUP BY" in line
            assert f"(level = '{level}')" in line
            needed = "30000" if per == "month" else "100000"
            assert "HAVING" in line
            assert f"* 300::numeric) >= {needed}::numeric" in line
            assert ("sum(sessions_started)" in line) == (per == "month")


def test_sums_are_read_of_the_candidates_alone(front: Front) -> None:
    query = Queries("accounting.front.limits").driver("sum_users").decode()
    with psycopg.connect(front.books.url()) as connection:
        connection.execute(
            "CREATE TEMP TABLE staged_limit_checks (realm_id integer, user_key uuid,"
            " level text, starts_at timestamptz, counted_until timestamptz)"
        )
        connection.execute(
            "CREATE TEMP TABLE staged_cell_usage (a integer, b uuid, c text, d timestamptz,"
            " e timestamptz, f numeric, g numeric, h numeric, i numeric)"
        )
        values = {"realm_id": 1, "realm": "example.org", "level": "month",
            "starts_at": "2026-11-01Z", "counted_until": "2026-12-01Z"}  # fmt: skip
        rows = connection.execute(f"EXPLAIN (VERBOSE, COSTS OFF) {query}", values).fetchall()
    remote = [row[0] for row in rows if "Remote SQL" in row[0]]
    assert len(remote) == 3
    for line in remote:
        assert "(user_key = ANY ($1::uuid[]))" in line
        assert "(realm = 'example.org')" in line


def test_a_cell_that_does_not_answer_changes_nothing(front: Front) -> None:
    limit(front)
    use(front, "north", 20, 600)
    use(front, "south", 21, 600)
    run(front, 30)
    before = limit_states(front.books)
    front.receive("south", 40, channel("status", allocation=1), status_payload("deleted"))
    front.receive("south", 41, channel("total_traffic", allocation=1), traffic_payload(2, 1, 0, 0))
    front.advance_clocks(50)
    front.run_jobs()
    with psycopg.connect(front.books.url(), autocommit=True) as connection:
        connection.execute("ALTER SERVER cell_north OPTIONS (SET dbname 'nowhere')")
        with pytest.raises(AccountingError, match=r"cell_north|cell 'north'"):
            evaluate_limits(front.books.engine)
        assert limit_states(front.books) == before
        name = front.cells["north"].name
        connection.execute(f"ALTER SERVER cell_north OPTIONS (SET dbname '{name}')")
    assert evaluate_limits(front.books.engine) == 1
    assert_as_whole(front)


def test_limits_of_a_realm_wait_while_a_cell_has_other_rules(front: Front) -> None:
    limit(front)
    change = "UPDATE accounting.realm_rules SET anchor_day = %s RETURNING 1"
    front.cells["south"].query(change, [15])
    use(front, "north", 20, 1200)
    front.advance_clocks(30)
    for books in (*front.cells.values(), front.whole):
        books.run_jobs()
    front.follow_clock()
    for _ in range(2):
        with pytest.raises(AccountingError, match=r"realm 'example\.org' wait: cell 'south'"):
            evaluate_limits(front.books.engine)
        front.advance_clocks(31)
    assert limit_states(front.books) == []
    front.cells["south"].query(change, [1])
    assert evaluate_limits(front.books.engine) == 1
    assert evaluate_limits(front.books.engine) == 0
    assert_as_whole(front)


def test_a_state_of_the_front_that_its_cells_do_not_have_is_found(front: Front) -> None:
    """What a cell changed since the limits were compared is no difference."""
    limit(front)
    use(front, "north", 20, 600)
    use(front, "south", 21, 600)
    front.advance_clocks(30)
    front.run_jobs()
    assert list(verify_installation(front.books.engine)) == []
    assert limit_states(front.books) == []
    evaluate_limits(front.books.engine)
    front.books.query("UPDATE accounting.limit_states SET starts_at = '2026-10-01Z' RETURNING 1")
    found = [(row.what, row.kind) for row in verify_installation(front.books.engine)]
    assert found == [("limit_states", "unfounded"), ("limit_states", "missing")]
