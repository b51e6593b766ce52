"""Doctor: looks at all that capturing and booking stand on, and says what to do.

A probe gathers facts (`redis_probe`, `store.examination`, `monitoring`), a judgement beside it
turns facts into findings and reaches nothing; `examination` puts them together. Only `redis_probe`
knows Redis. Nothing here changes anything.
"""

from accounting.ops.doctor.findings import Finding, Level
from accounting.ops.doctor.run import examine

__all__ = ["Finding", "Level", "examine"]
