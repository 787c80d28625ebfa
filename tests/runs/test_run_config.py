"""One configuration is what command line, ``config.toml`` and Python say alike, and what they train alike."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mpirun import mpi_run

import qsparse
from qsparse.cli.commands import qsparse as command
from qsparse.cli.train import config_of, train
from qsparse.errors import SettingError
from qsparse.run import RunConfig
from qsparse.run.config import OPTIONS
from qsparse.run.making import make_settings
from qsparse.wire.threads import run_threads

SMALL = {"model": "softmax", "steps": 12, "batch": 8, "evaluations": 40, "ranks": 2, "wire": "threads"}


def counted(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the history without times, and without what ranks told each other of their folder."""
    wire = {way: count for way, count in line["wire_bytes"].items() if way != "control"}
    return {**line, "seconds": {}, "link_bytes": {}, "wire_bytes": wire}


def words(options: dict[str, Any]) -> list[str]:
    """Options as words of the command line."""
    found = []
    for name, value in options.items():
        flag = OPTIONS[name].flag
        found += [f"--no-{flag[2:]}"] if value is False else [flag] if value is True else [f"{flag}={value}"]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": "cosine(0.1)", "sync_every": 2, "momentum": 0.9, "nesterov": True, "seed": 3},
        {"algorithm": "qsparse-local-sgd(k=9, momentum=0.5)", "down": "sign", "exchange": "tree"},
        {"algorithm": "dist-ef-sgdm", "nesterov": False, "momentum": 0.5},
    ],
    ids=str,
)
def test_python_trains_what_the_command_trains(tmp_path: Path, options: dict[str, Any]) -> None:
    options = SMALL | options
    done = CliRunner().invoke(command, ["train", "--quiet", f"--out={tmp_path}", *words(options)])
    assert done.exit_code == 0, done.output
    theirs = json.loads((tmp_path / "summary.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    config = RunConfig(**options)
    for each in (config, RunConfig.read(tmp_path / "config.toml")):
        summary, history = qsparse.run(each)
        assert summary["model_sha256"] == theirs["model_sha256"]
        assert summary["algorithm"] == theirs["algorithm"]
        assert len(history) == len(lines) > 1
        assert list(map(counted, history)) == list(map(counted, lines))


def test_files_are_left_where_they_are_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary, _ = qsparse.run(RunConfig(**SMALL, out=out, checkpoint_every=6))
    assert json.loads((out / "summary.json").read_text())["model_sha256"] == summary["model_sha256"]
    assert (out / "checkpoints").is_dir()
    again, _ = qsparse.run(RunConfig.read(out / "config.toml", out=tmp_path / "again", resume=out))
    assert again["model_sha256"] == summary["model_sha256"]
    for field in ({"checkpoint_every": 6}, {"resume": "auto"}, {"tensorboard": True}):
        with pytest.raises(SettingError, match="give the configuration its out"):
            qsparse.run(RunConfig(**SMALL, **field))


def test_a_wire_of_ones_own() -> None:
    config = RunConfig(**SMALL)
    first, second = run_threads(2, lambda wire: qsparse.run(config, wire), timeout=60)
    assert first.summary["model_sha256"] == qsparse.run(config).summary["model_sha256"]
    assert (second.summary, second.history) == ({}, [])


def test_ranks_of_a_launcher() -> None:
    program = """
        import qsparse

        config = qsparse.RunConfig(model="softmax", steps=12, batch=8, evaluations=40)
        summary, history = qsparse.run(config)
        if summary:
            print(summary["model_sha256"], summary["ranks"], len(history))
    """
    said = mpi_run(2, program, timeout=60).stdout.split()
    summary, history = qsparse.run(RunConfig(**SMALL))
    assert said == [summary["model_sha256"], "2", str(len(history))]


# --- the schema ----------------------------------------------------------------------------------


def test_every_field_is_an_option_and_a_key(tmp_path: Path) -> None:
    params = {str(param.name) for param in train.params}
    assert params == {*OPTIONS, "config", "quiet"}
    line = "--lr 0.1 --no-nesterov --import a --import b --epochs 2 --weight-decay-on weights --threads 2"
    config = config_of(train.make_context("train", shlex.split(line)).params)
    assert config == RunConfig(
        lr=0.1, nesterov=False, imports=("a", "b"), epochs=2, weight_decay_on="weights", threads=2
    )
    (tmp_path / "config.toml").write_text(config.text(4))
    assert RunConfig.read(tmp_path / "config.toml") == RunConfig.read(tmp_path / "config.toml", ranks=4)
    assert RunConfig.read(tmp_path / "config.toml", ranks=None) == config


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("steps", "many", "--steps must be a whole number, not 'many'"),
        ("steps", 2.5, "--steps must be a whole number, not 2.5"),
        ("clip", "long", "--clip must be a number, not 'long'"),
        ("clip", True, "--clip must be a number or a text, not True"),
        ("seed", None, "--seed must be a number or a text, not None"),
        ("nesterov", 1, "--nesterov is true or false, not 1"),
        ("imports", 3, "--import must be a list of texts, not 3"),
        ("weight_decay_on", "some", "--weight-decay-on must be all or weights, not 'some'"),
        ("threads", 0, "--threads must be at least 1, not 0"),
    ],
)
def test_a_field_that_cannot_have_its_value(field: str, value: Any, text: str) -> None:
    with pytest.raises(SettingError) as caught:
        RunConfig(**{field: value})
    assert str(caught.value) == text


def test_what_a_file_has_too_much_of(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('colour = "red"\n')
    with pytest.raises(SettingError, match="has 'colour', which is no option of train"):
        RunConfig.read(path)
    path.write_text("sync-every = 2\nsync_every = 3\n")
    with pytest.raises(SettingError, match="in two spellings: keep one"):
        RunConfig.read(path)


def test_the_configuration_of_the_authors_answer(root: Path, tmp_path: Path) -> None:
    """examples/cifar10_acc_asylpg.toml: what it says, and that it runs, and goes on, with small data."""
    config = RunConfig.read(root / "examples" / "cifar10_acc_asylpg.toml")
    settings = make_settings(config)
    axes = settings.algorithm.axes()
    assert (axes["compressor"], axes["down"]) == ("lowprecision(bits=4)", "lowprecision")
    assert axes["down_memory"] == "stateless"  # 8 bits, the default, and never more
    assert axes["server"] == "accelerated(lr=steps(start=0.1, after=[14550, 24250]))"
    assert (config.model, config.data, config.batch, config.augment) == ("resnet18", "cifar10", 128, "none")
    per_epoch = 50_000 // 4 // config.batch
    assert settings.algorithm.length == per_epoch - 1  # and the full gradient
    assert [150 * per_epoch, 250 * per_epoch] == [14550, 24250]
    assert config.checkpoint_every == per_epoch
    small = replace(
        config, data="digits", model="mlp(8)", batch=8, epochs=None, until=None, wire="threads", ranks=3,
        out=str(tmp_path / "out"), lr="steps(start=0.02, after=[90])",
    )  # fmt: skip
    qsparse.run(replace(small, steps=99))
    summary, _ = qsparse.run(replace(small, steps=108))
    assert [note["step"] for note in summary["resumed"]] == [98]
    assert summary["steps"] == 108
