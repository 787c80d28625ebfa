"""Standard streams that are closed, full or narrow: no command falls over them, and files stay UTF-8."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from mpirun import clean_environment

TRAIN = "train --data digits --model softmax --steps 4"
#: A locale of ASCII alone, which Python would otherwise take for UTF-8.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


#: The command, drawing one picture: 14 of them take seconds.
ONE_PICTURE = """
from qsparse.report import page
page.PICTURES = {"layer-bytes": page.PICTURES["layer-bytes"]}
from qsparse.cli import main
main()
"""


def shell(line: str, *, program: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which ``qsparse`` is this one, or a program."""
    words = f"-c {shlex.quote(program)}" if program else "-m qsparse"
    text = f'qsparse() {{ {shlex.quote(sys.executable)} {words} "$@"; }}; {line}'
    command, nothing = ["bash", "-c", text], subprocess.DEVNULL
    return subprocess.run(
        command, env=clean_environment(env), stdin=nothing, capture_output=True, timeout=120
    )


def whole(out: Path) -> bool:
    """Did a run end well, and did nothing but lines of its history get into it?"""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text("utf-8").splitlines()]
    return bool(lines) and (out / "summary.json").is_file()


def test_a_run_without_any_stream(tmp_path: Path) -> None:
    """Nor does the next file get the number of a stream, and all that libraries print."""
    module = "import os, warnings\nwarnings.warn('a warning')\nos.write(1, b'to 1')\nos.write(2, b'to 2')\n"
    (tmp_path / "speaks.py").write_text(module)
    line = f"cd {tmp_path}; qsparse {TRAIN} --import speaks --out run <&- >&- 2>&-"
    assert shell(line).returncode == 0
    assert whole(tmp_path / "run")
    for file in (tmp_path / "run").iterdir():
        assert b"to 1" not in file.read_bytes(), file
        assert b"to 2" not in file.read_bytes(), file


def test_ranks_without_standard_error(tmp_path: Path) -> None:
    done = shell(f"qsparse {TRAIN} --ranks 2 --out {tmp_path}/run 2>&-")
    assert done.returncode == 0, done
    assert whole(tmp_path / "run")
    assert done.stdout.startswith(b"test accuracy ")


def test_an_error_without_standard_error() -> None:
    assert shell("qsparse bits nope --n 9 2>&-").returncode == 1
    assert shell("qsparse bits nope --n 9 2>/dev/full").returncode == 1


def test_full_outputs_and_pipes_that_nobody_reads() -> None:
    text = b"error: what is to be printed cannot be written: No space left on device\n"
    for unbuffered in ("1", ""):  # written through at once, and kept until the end
        done = shell("qsparse bits sign --n 9 >/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == (1, text)
    assert shell("qsparse --help >/dev/full 2>/dev/full").returncode == 1
    done = shell("qsparse list | head -n 2 >/dev/null")
    assert (done.returncode, done.stderr) == (0, b"")


EVERYTHING = """
import sys

from qsparse.cli import main

for line in sys.argv[1].split(";"):
    sys.argv = ["qsparse", *line.split()]
    try:
        main()
    except SystemExit as end:
        print("status", end.code or 0, "of", line, flush=True)
"""


def test_everything_is_printed_in_a_narrow_encoding(tmp_path: Path) -> None:
    lines = [
        "--help", "train --help", "sweep --help", "reproduce --help", "bench kernels --help", "list",
        "doctor", "tune --gamma 0.1 --n 100", "bits sign --n 9", "bits γ --n 9",
        "plan --n 9 --speeds encode=1",
        "bench kernels --n 64 --rounds 1 --ratio 0.1 --quiet",
        "sweep figure-1 --model softmax --steps 1 --method SGD --dry-run",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING, ";".join(lines)],
        env=clean_environment({"PYTHONIOENCODING": "iso8859-1"}),
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=240,
    )  # fmt: skip
    said = done.stdout.decode("iso8859-1")
    status = dict.fromkeys(lines, "0") | {"bits γ --n 9": "1"}
    found = [line.split(" of ", 1) for line in said.splitlines() if line.startswith("status ")]
    assert [f"status {code}" for code in status.values()] == [code for code, _ in found], done
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"error: UnknownPart: no compressor is named '\\u03b3': " in done.stderr
    assert "? ? 0.1 for 100 coordinates" in said  # γ ≥ 0.1


def test_files_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    """Also what tells of a folder whose name is of another encoding."""
    (tmp_path / "config.toml").write_text('name = "γ größe"\nmodel = "softmax"\nsteps = 2\n', "utf-8")
    line = f"cd {tmp_path}; qsparse train --config config.toml --out $'\\xfcber'"
    line += " && qsparse plot $'\\xfcber' --title $'\\xc3\\x9c'"
    done = shell(line, program=ONE_PICTURE, **ASCII, PYTHONIOENCODING="iso8859-1")
    assert done.returncode == 0, done.stderr
    assert b"? gr\xf6\xdfe" in done.stdout  # in the table
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfcber"))
    assert whole(out)
    assert 'name = "γ größe"' in (out / "config.toml").read_text("utf-8")
    page = (tmp_path / "plots" / "index.html").read_text("utf-8")
    assert "γ größe" in page
    assert "\\udcfcber" in page


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    done = shell(f"cd {tmp_path}; qsparse {TRAIN} --out run --name $'\\xfcber'")
    assert done.returncode == 1
    assert not (tmp_path / "run").exists()
    assert b"error: SettingError: name is '\\udcfcber', which has bytes that are not text in " in done.stderr
    (tmp_path / "config.toml").write_text('out = "ö"\n', "utf-8")
    done = shell(f"cd {tmp_path}; qsparse {TRAIN} --config config.toml", **ASCII)
    assert done.returncode == 2
    assert b"cannot be a path on this machine: it has a letter that the locale" in done.stderr
