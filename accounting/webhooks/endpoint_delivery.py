"""Delivers to one endpoint under a lease: reads, sends and records, until one fails."""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Engine

from accounting.errors import AccountingError
from accounting.feed.reader import FeedEvent
from accounting.webhooks import leases
from accounting.webhooks.answer import UNSENT, Answer
from accounting.webhooks.attempts import Attempt
from accounting.webhooks.client import EndpointClient
from accounting.webhooks.format_choice import format_of
from accounting.webhooks.formats.metering import utc_text
from accounting.webhooks.formats.options import FormatName
from accounting.webhooks.leases import (
    LEASE_SECONDS,
    DisableCause,
    LeasedEndpoint,
    LeaseLost,
    Page,
    Step,
)
from accounting.webhooks.message import Outcome, Refusal, Request, SendFailed
from accounting.webhooks.position import Position
from accounting.webhooks.retries import retry_pause

log = structlog.get_logger()

FAILING_DAYS: Final = 5
"""An endpoint that takes nothing for so long is disabled."""
MIN_FAILURES: Final = 20
"""And in so many attempts, because nothing is sent while no scheduler runs."""
TURN_SECONDS: Final = 30.0
"""So long an endpoint is served at once: there may be more of them than threads."""
SEND_MARGIN_SECONDS: Final = 25.0
"""A request begins only while the lease lasts longer than a request takes."""
MAX_AHEAD: Final = 1_000
"""With parallel requests: so many events may be taken after one that is not."""
GONE: Final = 410


class EndpointDelivery:
    """One turn of one endpoint."""

    def __init__(
        self,
        engine: Engine,
        leased: LeasedEndpoint,
        is_stopping: Callable[[], bool],
        *,
        private_addresses: bool,
    ) -> None:
        self._engine = engine
        self._leased = leased
        self._is_stopping = is_stopping
        self._private_addresses = private_addresses
        self._position = Position(leased.seq, leased.seqs_ahead)
        self._written_seq = leased.seq
        self._kept: tuple[int, Collection[int]] = leased.seq, leased.seqs_ahead
        self._refusals: list[Refusal] = []
        self._failures = leased.failures
        self._in_doubt_since = leased.in_doubt_since
        self._doubts_next = leased.in_doubt_since is not None
        self._is_first_doubt = False
        self._delivered = 0
        self._is_over = False
        self._began = self._lease_began = time.monotonic()
        self._set_now(leased.now)

    def run(self) -> int:
        """Deliver until nothing is left, an attempt fails, or the turn is over.

        Returns how many events were taken. An error of this program is a failure of the endpoint,
        as its answers and events are what can cause one. After a lost connection the lease ends by
        itself.
        """
        try:
            try:
                self._run()
            except (AccountingError, LeaseLost):
                raise
            except Exception as error:  # it must end no other endpoint's delivery
                log.error("webhook can't be delivered", webhook=self._number, exc_info=error)
                self._forget_unwritten()
                self._write(None, failure=f"an error of this program: {type(error).__name__}")
            leases.release(self._engine, self._leased)
        except LeaseLost:
            leases.end_wait(self._engine, self._leased)
            log.debug("a webhook is delivered by another process", webhook=self._number)
        return self._delivered

    def _run(self) -> None:
        endpoint = self._leased.endpoint
        self._format = format_of(self._engine, endpoint, [])
        # A doubt is about the next event only, so that such a format has one request at a time.
        self._parallel = 1 if self._format.repeat_seconds is not None else endpoint.parallel
        if self._leased.is_restored and not self._go_on_after_restore():
            return
        if self._is_doubt_too_old():
            return
        with EndpointClient(
            endpoint, private_addresses=self._private_addresses, connections=self._parallel
        ) as self._client:
            while not self._is_ending():
                page = leases.read_page(
                    self._engine, self._leased, self._position.seq, self._position.seqs_ahead
                )
                if page is None:
                    break
                if not self._deliver_page(page):
                    return
        self._flush()

    @property
    def _number(self) -> int:
        return self._leased.endpoint.number

    def _set_now(self, now: datetime) -> None:
        self._database_now = now
        self._now_read = time.monotonic()

    def _now(self) -> datetime:
        """The database's time."""
        return self._database_now + timedelta(seconds=time.monotonic() - self._now_read)

    def _is_ending(self) -> bool:
        is_turn_over = time.monotonic() - self._began > TURN_SECONDS
        return self._is_over or is_turn_over or self._is_stopping()

    def _deliver_page(self, page: Page) -> bool:
        """Deliver the events of a page; whether all were taken."""
        self._position.open_page(page)
        self._format = format_of(self._engine, self._leased.endpoint, page.events)
        batch_size = self._leased.endpoint.batch_size
        start = 0
        while start < len(page.events):
            if self._is_ending():
                return True
            is_far_ahead = len(self._position.seqs_ahead) >= MAX_AHEAD
            size = batch_size * (1 if is_far_ahead else self._parallel)
            if not self._deliver_events(page.events[start : start + size]):
                return False
            start += size
        self._flush()
        return True

    def _deliver_events(self, events: Sequence[FeedEvent]) -> bool:
        """Send what the format makes of some events; whether all were taken."""
        steps = self._format.requests(events, self._now())
        requests = [step for step in steps if isinstance(step, Request)]
        refusals: Sequence[Refusal] = [step for step in steps if isinstance(step, Refusal)]
        if steps and self._doubts_next:
            refusals, self._doubts_next = self._with_doubt(refusals), False
        self._refusals += refusals
        sent = {event.seq for request in requests for event in request.events}
        self._position.add_done(event.seq for event in events if event.seq not in sent)
        if len(requests) == 1 or self._parallel == 1:
            return all(self._deliver_request(request) for request in requests)
        return self._deliver_at_once(requests)

    def _with_doubt(self, refusals: Sequence[Refusal]) -> Sequence[Refusal]:
        """Say of what was sent before, without an answer, that it may have been taken."""
        since = self._leased.in_doubt_since
        assert since is not None
        doubt = (
            f"; but a request of {utc_text(since)} had no answer: it may have been taken, look "
            "there first"
        )
        return [replace(refusal, reason=refusal.reason + doubt) for refusal in refusals]

    def _deliver_request(self, request: Request) -> bool:
        following: Request | None = request
        while following is not None:
            if self._is_over:
                return False
            self._prepare_to_send()
            answer = self._send(following)
            self._record(answer, counts_failure=True)
            if answer.outcome.failure is not None:
                return False
            following = answer.outcome.rest
        return True

    def _deliver_at_once(self, requests: Sequence[Request]) -> bool:
        has_failed = False
        self._prepare_to_send()
        with ThreadPoolExecutor(self._parallel, thread_name_prefix="webhook-request") as threads:
            try:
                for future in as_completed(threads.submit(self._send, each) for each in requests):
                    answer = future.result()
                    failed = answer.outcome.failure is not None
                    self._record(answer, counts_failure=failed and not has_failed)
                    has_failed |= failed
                    if answer.outcome.rest is not None:
                        has_failed |= not self._deliver_request(answer.outcome.rest)
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        return not has_failed

    def _prepare_to_send(self) -> None:
        """Make sure that the lease lasts, and that a doubt is recorded. Raises LeaseLost."""
        if self._format.repeat_seconds is not None and self._in_doubt_since is None:
            begun = time.monotonic()
            leases.begin_doubt(self._engine, self._leased)
            self._lease_began, self._in_doubt_since = begun, self._now()
            self._is_first_doubt = True
        else:
            self._is_first_doubt = False
        if time.monotonic() - self._lease_began > LEASE_SECONDS - SEND_MARGIN_SECONDS:
            self._write(None)

    def _send(self, request: Request) -> Answer:
        """Send a request. It writes nothing to the database."""
        attempted_at, started = self._now(), time.monotonic()
        status: int | None = None
        retry_after_seconds = None
        is_unsent = False
        try:
            response = self._client.send(request, attempted_at)
        except SendFailed as error:
            status = error.status
            is_unsent = error.reason in UNSENT
            outcome = Outcome(taken=0, failure=str(error))
        else:
            status = response.status
            retry_after_seconds = response.retry_after_seconds
            outcome = self._format.outcome(request, response)
        return Answer(
            request=request,
            attempt=Attempt(
                attempted_at=attempted_at,
                events=request.events,
                taken=outcome.taken,
                status=status,
                failure=outcome.failure,
                seconds=time.monotonic() - started,
            ),
            outcome=outcome,
            retry_after_seconds=retry_after_seconds,
            is_unsent=is_unsent,
        )

    def _record(self, answer: Answer, *, counts_failure: bool) -> None:
        """Write what an answer changed; disable the endpoint where that is what it means."""
        outcome = answer.outcome
        refused = {refusal.event.seq for refusal in outcome.refusals}
        taken = {event.seq for event in answer.request.events[: outcome.taken]}
        if outcome.rest is not None:
            rest = {event.seq for event in outcome.rest.events}
            taken = {event.seq for event in answer.request.events} - rest
        self._refusals += outcome.refusals
        self._position.add_done(taken | refused)
        has_failed = outcome.failure is not None
        failing_since = self._write(
            answer,
            delivered=len(taken - refused),
            counts_failure=has_failed and counts_failure,
        )
        if not has_failed:
            return
        if answer.attempt.status == GONE:
            self._disable("gone", "it answered 410 Gone: it wants no more events")
        elif (
            failing_since is not None
            and self._now() - failing_since >= timedelta(days=FAILING_DAYS)
            and self._failures >= MIN_FAILURES
        ):
            self._disable("failing", f"it took nothing for {FAILING_DAYS} days: {outcome.failure}")
        elif self._failures == 1:
            log.warning(
                "webhook can't be delivered, trying again",
                webhook=self._number,
                reason=outcome.failure,
            )

    def _write(
        self,
        answer: Answer | None,
        *,
        delivered: int = 0,
        counts_failure: bool = False,
        failure: str | None = None,
    ) -> datetime | None:
        """Write the position and an attempt; returns since when it fails. Raises LeaseLost."""
        retry_after = None if answer is None else answer.retry_after_seconds
        # An earlier request may have been taken, of which this one says nothing.
        ends_doubt = self._is_first_doubt and answer is not None and answer.is_surely_refused
        failures = self._failures if self._position.seq == self._written_seq else 0
        begun = time.monotonic()
        moved = leases.write_step(
            self._engine,
            self._leased,
            Step(
                seq=self._position.seq,
                seqs_ahead=self._position.seqs_ahead,
                attempt=None if answer is None else answer.attempt,
                refusals=self._refusals,
                delivered=delivered,
                counts_failure=counts_failure or failure is not None,
                failure=failure,
                retry_seconds=retry_pause(failures + 1, retry_after),
                ends_doubt=ends_doubt,
            ),
        )
        self._lease_began = begun
        if ends_doubt or self._position.seq != self._written_seq:
            self._in_doubt_since = None
        self._written_seq = self._position.seq
        self._kept = self._position.seq, self._position.seqs_ahead
        self._refusals = []
        self._delivered += delivered
        self._failures = moved.failures
        self._is_over = moved.version != self._leased.version
        self._set_now(moved.now)
        return moved.failing_since

    def _flush(self) -> None:
        """Write what no request wrote: events that need none, or that were refused before."""
        if self._refusals or self._position.seq != self._written_seq:
            self._write(None)

    def _forget_unwritten(self) -> None:
        """Go back to what is written: the position must not pass refusals that are not."""
        self._position = Position(*self._kept)
        self._refusals = []

    def _disable(self, cause: DisableCause, reason: str) -> None:
        self._is_over = True
        leases.disable(self._engine, self._leased, cause, reason)
        log.error("webhook is disabled", webhook=self._number, reason=reason)

    def _is_doubt_too_old(self) -> bool:
        """Disable an endpoint that would count an event twice if it had taken it before."""
        seconds = self._format.repeat_seconds
        if seconds is None or self._in_doubt_since is None:
            return False
        if self._now() - self._in_doubt_since < timedelta(seconds=seconds):
            return False
        self._disable(
            "in_doubt",
            f"it is not known whether it took the event after {self._position.seq}, and it knows a "
            f"repeated event only for {seconds / 3600:.0f} hours: look there, then go on with "
            f"`turn-accounting webhook replay {self._number} --after SEQ`",
        )
        return True

    def _go_on_after_restore(self) -> bool:
        """Go on from what the feed still has; whether the endpoint is one that can."""
        if FormatName(self._leased.endpoint.format).is_metering:
            self._disable(
                "restored",
                f"the feed up to {self._leased.seq} is not the one that was delivered: its "
                "database was restored from a backup. Compare the usage there with the statements, "
                f"then go on with `turn-accounting webhook replay {self._number} --after SEQ`",
            )
            return False
        seq = leases.last_common_position(self._engine, self._leased)
        log.warning(
            "the feed was restored from a backup, a webhook goes on from what it still has",
            webhook=self._number,
            after=seq,
        )
        self._position, self._kept = Position(seq), (seq, ())
        return True
