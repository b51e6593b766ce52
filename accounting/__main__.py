"""Entry point of ``turn-accounting``, also ``python -m accounting``.

Importing creates hardly any garbage, and collecting it took a fifth of a command's start. So the
collector is off meanwhile; ``freeze`` then exempts the imported objects, which live to the end.
"""

import gc

gc.disable()

from accounting.cli.main import main  # noqa: E402  # only now, with the collector off

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
