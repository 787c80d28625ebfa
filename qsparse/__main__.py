"""``python -m qsparse`` is ``qsparse``."""

from qsparse.cli import main

main()
