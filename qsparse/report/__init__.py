"""Pictures and tables of runs, as ``qsparse plot`` draws them.

`draw` takes folders that ``qsparse train`` wrote, and writes a page with all pictures and tables.
"""

from qsparse.report.page import draw

__all__ = ["draw"]
