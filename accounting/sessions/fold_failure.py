"""The error of a fold that raised: a bug."""

from collections.abc import Collection

from accounting.domain.session_fold import AllocationKey
from accounting.plurals import counted


class FoldFailed(Exception):
    """Folding these keys, or packing what that changed, raised: their sessions are half changed.

    ``CarefulFold`` folds them without it, and sets aside the reports that raise.
    """

    def __init__(self, keys: Collection[AllocationKey]) -> None:
        super().__init__(f"folding {counted(len(keys), 'key')} failed")
        self.keys = keys
