"""Pictures and tables of runs: what ``qsparse plot`` draws.

`draw` takes folders that ``qsparse train`` wrote, and writes a page that holds everything.
"""

from qsparse.report.page import draw

__all__ = ["draw"]
