"""Keep the times in a spool on the database's clock.

A spool's times after ``unconfirmed_from`` come from a clock that was not yet compared with the
database's. When its error is known, they are corrected together; the loader waits for that. The
spool keeps the offset from the machine's steady clock, with the id of the machine's start. Until
the machine is started again, a new collector continues the same timeline.
"""

from dataclasses import replace
from typing import Final

import structlog

from accounting.capture.clock import CaptureClock
from accounting.capture.source import Attachment
from accounting.capture.spool.records import RawKeySighting, SpoolState
from accounting.capture.spool.spool import Spool

log = structlog.get_logger()

STORED_PRECISION: Final = 10_000
"""Microseconds by which the offset in the spool may be old: each write of it costs a sync."""


class ClockCorrection:
    """The clock of one run of capture and the times in its spool. For the thread of capture."""

    def __init__(self, clock: CaptureClock, spool: Spool) -> None:
        self._clock = clock
        self._spool = spool
        self._agreed_at = 0

    @property
    def correction(self) -> int:
        """What to add to a time of the clock before it is stored."""
        return self._clock.correction

    def start(self) -> None:
        """Begin a run: on the timeline of the spool, else at the machine's time of day.

        The machine may have been started with a wrong time of day, or its clock may be wrong just
        now, so that time counts as unconfirmed. It begins after the spool's last time:
        the distances between unconfirmed times must stay what they were.
        """
        state = self._spool.state()
        is_same_boot = state.boot == self._clock.boot != ""
        is_confirmed = is_same_boot and state.unconfirmed_from is None
        self._clock.start(
            state.clock_offset if is_same_boot else None,
            not_before=0 if is_confirmed else state.newest_at + 1,
        )
        unconfirmed_from = state.unconfirmed_from
        if not is_confirmed and unconfirmed_from is None:
            unconfirmed_from = state.newest_at
        self._agreed_at = state.newest_at
        self._spool.set_clock(self._clock.boot, self._clock.offset, unconfirmed_from)
        self.follow_database()

    def follow_database(self) -> None:
        """Evaluate the readings of the database's clock since the last call."""
        while (reading := self._clock.next_error()) is not None:
            state = self._spool.state()
            if reading.error == 0:
                self._agreed_at = state.newest_at
                self._confirm(state)
                continue
            unconfirmed_from = state.unconfirmed_from
            if unconfirmed_from is None:
                # The steady clock itself stepped, or the database's did: what was stored since the
                # last agreement waits until it is clear.
                unconfirmed_from = self._agreed_at
                self._spool.set_clock(self._clock.boot, self._clock.offset, unconfirmed_from)
            if reading.is_certain:
                self._correct(reading.error, unconfirmed_from)

    def _confirm(self, state: SpoolState) -> None:
        offset = self._clock.offset
        stored = state.clock_offset
        is_stored = stored is not None and abs(stored - offset) <= STORED_PRECISION
        if state.unconfirmed_from is not None or not is_stored:
            self._spool.set_clock(self._clock.boot, offset, None)

    def _correct(self, error: int, unconfirmed_from: int) -> None:
        self._clock.correct(error)
        with self._spool.transaction():
            messages = self._spool.shift_times(error, after=unconfirmed_from)
            self._spool.set_clock(self._clock.boot, self._clock.offset, None)
        self._agreed_at = self._spool.state().newest_at
        log.warning(
            "receipt times corrected by the database's clock",
            seconds=round(error / 1e6, 3),
            messages=messages,
        )

    # -- between the clock's timeline and the spool's times

    def to_timeline(self, state: SpoolState) -> SpoolState:
        """A spool's state, with times of the clock's timeline."""
        if not self.correction:
            return state
        until = state.captured_until
        return replace(
            state,
            captured_until=None if until is None else until - self.correction,
            last_received_at=state.last_received_at - self.correction,
        )

    def corrected(self, attachment: Attachment) -> Attachment:
        """An attachment, with corrected times."""
        started_at = attachment.server_started_at
        return replace(
            attachment,
            captured_from=attachment.captured_from + self.correction,
            server_started_at=None if started_at is None else started_at + self.correction,
        )

    def corrected_sighting(self, sighting: RawKeySighting) -> RawKeySighting:
        """A sighting, with corrected times."""
        return sighting._replace(
            scan_started_at=sighting.scan_started_at + self.correction,
            seen_at=sighting.seen_at + self.correction,
        )
