"""Entry point of ``turn-accounting``, also ``python -m accounting``.

structlog imports rich where it is installed, for tracebacks that are not used here: a tenth of a
second and 4 MB. So there is no rich in this process. The garbage collector is off until the
command's module is imported: importing leaves no garbage.
"""

import gc
import sys

gc.disable()

sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails

from accounting.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
