"""Whether links can be limited here."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

LACKING = [tool for tool in ("ip", "tc", "unshare", "nsenter") if shutil.which(tool) is None]


limited = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or bool(LACKING),
    reason=f"links are limited on Linux, as root, with iproute2 and util-linux (lacking: {LACKING})",
)
