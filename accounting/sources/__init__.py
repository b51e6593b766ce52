"""Sources: how far each is loaded and settled, what capture missed, and which collector has it.

Comes in: positions that the loader and settling reached, gaps and leases. Goes out: the same rows,
and the positions from which each stage continues. Invariant: a position or watermark moves only
from where its writer read it, so that two loaders never count the same message twice.

``source_queries``: sources and their epochs. ``watermark_queries``: how far settling has come.
``identity``: which histories of which Redis are a source's. ``rename``: gives it another name.
``gap_queries``: capture gaps. ``lease_queries``: leases. ``retire``: takes a source out of service.
``trouble``: the event of a new gap, a refused source or a clock that is off.
"""
