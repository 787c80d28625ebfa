"""Files and folders as strangers name and write them: tildes, marks, encodings, values of another type."""

from __future__ import annotations

import json
import os
import pwd
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mpirun import mpi_run
from tiny_files import tiny_mnist, write

from qsparse.cli.commands import qsparse
from qsparse.data import load
from qsparse.errors import CheckpointError, SettingError
from qsparse.files import named_path
from qsparse.report.runs import methods
from qsparse.run.checkpoint import Checkpoints, find
from qsparse.sweep.running import Run
from qsparse.wire.threads import run_threads

SMALL = "train --data digits --model softmax --steps 2 --quiet"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a home folder beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    return tmp_path / "work"


def invoke(line: str) -> Result:
    return CliRunner().invoke(qsparse, shlex.split(line))


def done(line: str) -> Result:
    result = invoke(line)
    assert result.exit_code == 0, (line, result.output, result.exception)
    return result


def refused(line: str, *texts: str) -> None:
    """A sentence, and no traceback."""
    result = invoke(line)
    assert isinstance(result.exception, SystemExit), (line, result.exception)
    assert result.exit_code in (1, 2), (line, result.output)
    for text in texts:
        assert text in result.stderr, (line, result.stderr)


# --- a tilde is the home folder -----------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_everywhere(tmp_path: Path, place: Path) -> None:
    home = tmp_path / "home"
    rows = "".join(f"{i % 2} 1:{i % 2}\n" for i in range(40))
    write(home / "data", {"rows": rows.encode()})
    (home / "config.toml").write_text('data = "libsvm:rows"\ndata_dir = "~/data"\nmodel = "softmax"\n')
    (home / "sweep.toml").write_text('data = "libsvm:~/data/rows"\n[methods.a]\nmodel = "softmax"\n')
    np.save(home / "probe.npy", np.arange(9.0))
    done("train --config=~/config.toml --steps 2 --quiet --out=~/run --checkpoint-every 1")
    done("train --config=~/config.toml --steps 2 --quiet --out=~/again --resume=~/run")
    assert (home / "again" / "summary.json").is_file()
    done("plot ~/run --out=~/plots --quiet")
    assert (home / "plots" / "index.html").is_file()
    said = done("sweep ~/sweep.toml --steps 1 --dry-run --out=~/swept").stdout
    assert f"--out={home}/swept/a/seed-0" in said
    done("tune --gamma 0.1 --probe=~/probe.npy")
    done("bench kernels --n 64 --rounds 1 --ratio 0.5 --quiet --json=~/kernels.json")
    assert (home / "kernels.json").is_file()
    refused("reproduce laq --data-dir=~/nowhere --out=~/reproduced", f"the data folder {home}/nowhere does")
    refused("bench allreduce --json=~/no/file --ranks 2", f"cannot write to --json {home}/no/file")
    assert list(place.iterdir()) == []


def test_a_tilde_in_the_environment_and_in_calls(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write(home / "data" / "mnist", tiny_mnist())
    monkeypatch.setenv("QSPARSE_CACHE", "~/cache")
    assert len(load("mnist", Path("~/data")).train_y) == 30
    monkeypatch.setenv("QSPARSE_DATA", "~/data")
    assert len(load("mnist").train_y) == 30
    assert (home / "cache" / "decoded").is_dir()

    def body(wire: Any) -> None:
        with pytest.raises(CheckpointError, match=f"no checkpoint in {home}/none"):
            find(wire, Checkpoints(place, resume="~/none"))

    run_threads(1, body)
    program = """
        import torch
        from qsparse.torch import attach

        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=1)") as link:
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            link.save("~/link")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=1)") as link:
            link.resume("~/link")
            assert link.steps == 1
    """
    mpi_run(1, program, env={"HOME": str(home)})
    assert any((home / "link").iterdir())
    assert list(place.iterdir()) == []


def test_what_is_no_home_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(
        f"{SMALL} --out=~nobody-of-this-name/x", "there is no home folder of a user 'nobody-of-this-name'"
    )
    (place / "~not-a-user").write_text('model = "softmax"\n')
    done("train --config=~not-a-user --steps 1 --quiet --out ./~")  # a file of this name is there
    assert (place / "~" / "summary.json").is_file()
    for wrong in ("", "a\0b", "x" * 5000):
        with pytest.raises(SettingError):
            named_path(wrong)
    refused(f"{SMALL} --out=''", "a path is empty")
    refused(f"{SMALL} --out={'x' * 300}", "a path has 300 letters: File name too long")


# --- nobody's home ------------------------------------------------------------------------------------


def test_a_user_without_a_home_lacks_only_the_cache(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "QSPARSE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    done(f"{SMALL} --out run")
    data = write(tmp_path / "data", tiny_mnist())
    assert len(load("mnist", data).train_y) == 30  # not kept for the next run
    refused(f"{SMALL} --data mnist", "let QSPARSE_CACHE name one")
    refused(f"{SMALL} --data libsvm:nowhere", "there is no LIBSVM file nowhere: looked for ")
    refused(f"{SMALL} --out=~/x", "there is no home folder of this user, and HOME is not set")
    monkeypatch.setenv("QSPARSE_CACHE", "~/cache")
    refused(f"{SMALL} --data mnist", "let QSPARSE_CACHE name one")


# --- settings files -----------------------------------------------------------------------------------

GOOD = 'model = "softmax"\nname = "größe"\nsteps = 1\n'


def test_marks_and_line_ends_of_other_systems(place: Path) -> None:
    text = GOOD.replace("\n", "\r\n").encode("utf-8-sig")
    (place / "config.toml").write_bytes(text)
    done("train --config config.toml --quiet --out run")
    assert 'name = "größe"' in (place / "run" / "config.toml").read_text("utf-8")
    (place / "own.toml").write_bytes(b"\xef\xbb\xbf[methods.a]\r\nmodel = 'softmax'\r\n")
    assert "--model=softmax" in done("sweep own.toml --dry-run").stdout
    # What an editor did to the files of a run.
    for name in ("config.toml", "history.jsonl", "summary.json"):
        file = place / "run" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    (one,) = methods([place / "run"])
    assert one.label == "größe"
    assert one.runs[0].summary is not None


NOT_TOML: dict[str, tuple[bytes, str]] = {
    "latin-1": (
        GOOD.encode("latin-1"),
        "is not text in UTF-8: byte 0xf6 in line 2, column 11, is of another",
    ),
    "marked": (b"\xef\xbb\xbf\n\xff", "is not text in UTF-8: byte 0xff in line 2, column 1, is of another"),
    "utf-16": (GOOD.encode("utf-16"), "is not text in UTF-8: byte 0xff in line 1, column 1, is of another"),
    "half": (b"steps = ", "is not valid TOML: "),
    "deep": (b"a = " + b"[" * 3000, "is not valid TOML: "),
    "digits": (b"steps = " + b"9" * 5000, "is not valid TOML: "),
}


@pytest.mark.parametrize("kind", NOT_TOML)
def test_settings_that_are_not_toml(kind: str, place: Path) -> None:
    data, text = NOT_TOML[kind]
    (place / "x.toml").write_bytes(data)
    refused(f"{SMALL} --config x.toml", f"error: SettingError: --config x.toml {text}")
    refused("sweep x.toml --dry-run", f"error: SettingError: x.toml {text}")
    run = place / "run"
    run.mkdir()
    done_line = {"step": 1, "epoch": 1, "test_accuracy": 0.5}
    done_line |= {key: {"up": 1, "down": 1} for key in ("paper_bits", "wire_bytes")}  # type: ignore[dict-item]
    (run / "history.jsonl").write_text(json.dumps(done_line) + "\n")
    (run / "config.toml").write_bytes(data)
    refused("plot run", f"error: DataError: {run.relative_to(place)}/config.toml {text}")
    assert not (place / "plots").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs = [1, 2]", "--epochs must be a number or a text, not [1, 2]"),
        ("algorithm = {a = 1}", "--algorithm must be a number or a text"),
        ("quiet = 1", "--quiet is true or false, not 1"),
        ("seed = 1.5", "--seed must be a whole number, not 1.5"),
        ("batch = true", "--batch must be a number or a text, not True"),
        ("steps = 'x'", "--steps must be a whole number, not 'x'"),
        ("imports = 3", "--import must be a list of texts, not 3"),
        ("imports = [3]", "--import must be a list of texts, not [3]"),
        ("name = 1979-05-27", "--name must be a number or a text"),
        ("data-dir = 3", "3 is not a path"),
        ('out = "a\\u0000b"', "cannot be a path on this machine"),
        ("nothing = 3", "has 'nothing', which is no option of train"),
    ],
)
def test_settings_of_another_type(text: str, said: str, place: Path) -> None:
    (place / "x.toml").write_text(text)
    refused("train --model softmax --config x.toml", said)
    (place / "own.toml").write_text(f"{text}\n[methods.a]\nmodel = 'softmax'\n")
    if not text.startswith(("out", "quiet", "name", "data-dir")):
        refused("sweep own.toml --dry-run", f"sweep own{': ' if 'nothing' not in said else ' '}{said}")


def test_files_of_a_run_that_somebody_has_changed(place: Path) -> None:
    done(f"{SMALL} --out run")
    kept = {name: (place / "run" / name).read_bytes() for name in os.listdir(place / "run")}
    # As a sweep has it, which would run it again.
    run = Run("some", None, 0, place / "run", (), kept["config.toml"].decode())
    assert run.done()
    for name, data, text in [
        ("summary.json", b"[]", "summary.json is no summary of qsparse train (paper_bits.up is missing"),
        ("summary.json", b'{"paper_bits": 3}', "(paper_bits.up is missing, or not a number)"),
        ("summary.json", b"[" * 99999, "summary.json is no summary of qsparse train (it is nested too deep)"),
        ("summary.json", b"\xff", "summary.json is not text in UTF-8: byte 0xff in line 1"),
        ("history.jsonl", b'{"step": "x"}\n\n', "history.jsonl, line 1, is no evaluation of qsparse train"),
        ("history.jsonl", b"[1]\n\n", "history.jsonl, line 1, is no evaluation of qsparse train"),
        ("config.toml", b"evaluations = 'x'", "evaluations is not a whole number"),
    ]:
        (place / "run" / name).write_bytes(data)
        refused("plot run", text)
        assert not run.done()
        (place / "run" / name).write_bytes(kept[name])


@pytest.mark.parametrize("line", ["[]", "3", '{"rank": 1e999}', '{"rank": "x"}', "[" * 99999, "\xff"])
def test_arrivals_that_are_none(line: str, place: Path) -> None:
    (place / "x").write_bytes(b'{"rank": 1}\n' + line.encode("latin-1") + b"\n")
    refused(
        f"{SMALL} --algorithm qsparse-local-sgd-async --repeat x",
        "line 2" if line != "\xff" else "is not text in UTF-8: byte 0xff in line 2, column 1",
    )


# --- modules, sizes, folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", "it fails with SyntaxError"),
        ("def f():\n    return 1 / 0\nf()\n", "it fails with ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)\n", "it fails with SystemExit: 0"),
        ("import not_installed_anywhere\n", "it fails with ModuleNotFoundError"),
    ],
)
def test_modules_that_fail(text: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))
    name = f"mine_{abs(hash(text))}"
    (place / f"{name}.py").write_text(text)
    for line, doing in [
        (f"{SMALL} --import {name}", f"import --import {name}"),
        (f"laws {name}:Part", f"load '{name}:Part'"),
    ]:
        refused(line, f"error: SettingError: cannot {doing}: {said}")
    if "1 / 0" in text:  # its own traceback, and nothing of ours
        result = invoke(f"{SMALL} --import {name}")
        assert "return 1 / 0" in result.stderr
        assert "importlib" not in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{SMALL} --import ''", "cannot import --import : "),
        (f"{SMALL} --import a/b", "cannot import --import a/b: No module named 'a/b'; name a module of"),
        (f"{SMALL} --import .x", "cannot import --import .x: "),
        ("laws .x:y", "cannot load '.x:y': "),
        (f"{SMALL} --model 'mlp(999999999999)'", "does not fit into the memory of this machine: "),
        (f"{SMALL} --model 'mlp({'9' * 5000})'", "cannot read 'mlp(999"),
        ("bits sign --n 9 --seed -1", "-1 is not in the range x>=0"),
        ("bits sign --n 99999999999999", "error: not enough memory: Unable to allocate "),
        ("bits sign --n 99999999999999999999", "values are more than any memory holds"),
        ("bench kernels --n 64 --rounds 1 --ratio 0.5 --quiet --json /dev/full", "No space left on device"),
        ("sweep laq --model softmax --steps 1 --out /dev/null/x", "cannot write to --out /dev/null/x: "),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(line: str, said: str) -> None:
    refused(line, said)
