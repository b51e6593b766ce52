"""Whether a collector captures, according to its spool."""

from pathlib import Path

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.ops import service


def test_a_collector_captures_while_checkpoints_are_recent_and_no_gap_is_open(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path)
    assert not service.is_capturing(settings)
    with Spool.open(spool_path(tmp_path, "default"), "default") as spool:
        assert not service.is_capturing(settings)
        spool.checkpoint(wall_clock() - 60_000_000)
        assert not service.is_capturing(settings)
        spool.checkpoint(wall_clock())
        assert service.is_capturing(settings)
        gap = spool.open_gap(wall_clock(), "disconnected")
        assert not service.is_capturing(settings)
        spool.close_gap(gap, wall_clock())
        assert service.is_capturing(settings)
