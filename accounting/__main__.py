"""``turn-accounting``, also as ``python -m accounting``: how its process begins.

Importing makes hardly any garbage, and looking for it was a fifth of what a command took to begin.
What is imported stays to the end, so no later look for garbage goes over it again.
"""

import gc

gc.disable()

from accounting.cli.main import main  # noqa: E402  # that is the point

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
