"""The configuration of a run: one schema of command line, ``config.toml``, sweeps and Python."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from qsparse.errors import SettingError
from qsparse.files import named_path, read_toml


@dataclass(frozen=True)
class Option:
    """What is known of an option of a run.

    Args:
        help: what it is, for ``--help``.
        name: of the field; also the key in ``config.toml``.
        flag: on the command line.
        type: bool, int, float, str, or tuple for several texts.
        default: where nothing is said.
        choices: the texts that it may be; any, without.
        least: the smallest number that it may be.
        metavar: what the help shows for its value.
        is_path: it is a path.
        setting: of a preset, which gets it under this name.
        says_method: with another value a published method would be another one under its name.
        repeats: runs of one method may differ in it.
        names_folder: a run has another default folder with another value.
        by_sweep: a sweep chooses it by itself.
        elsewhere: it says where a run happens, not what it is, so it is not written to ``config.toml``.
    """

    help: str
    name: str = ""
    flag: str = ""
    type: type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    metavar: str | None = None
    is_path: bool = False
    setting: str | None = None
    says_method: bool = False
    repeats: bool = False
    names_folder: bool = True
    by_sweep: bool = False
    elsewhere: bool = False

    def unlike(self, value: Any) -> str:
        """What a value must be, where it is something else; nothing where it will do."""
        if self.type is bool:
            return "" if isinstance(value, bool) else "is true or false"
        if self.type is tuple:
            texts = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
            return "" if texts else "must be a list of texts"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return "must be a number or a text"
        if self.type is int:
            return "" if re.fullmatch(r"[+-]?\d+", str(value)) else "must be a whole number"
        return ""

    def taken(self, value: Any) -> Any:
        """The value of a field for what was given.

        Raises:
            SettingError: it cannot be this option's.
        """
        if value is None and self.default is None:
            return None
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        wanted = self.unlike(value)
        try:
            made = value if wanted else self.type(value)
        except ValueError:
            wanted = "must be a number"
        if not wanted and self.choices and made not in self.choices:
            wanted = f"must be {' or '.join(self.choices)}"
        if not wanted and self.least is not None and made < self.least:
            wanted = f"must be at least {self.least}"
        if wanted:
            raise SettingError(f"{self.flag} {wanted}, not {value!r}")
        return made


def _option(default: Any, help: str, **known: Any) -> Any:
    return field(default=default, metadata={"option": Option(help, **known)})


@dataclass(frozen=True)
class RunConfig:
    """What ``qsparse train`` takes: each field is an option, and a key of ``config.toml``.

    Its help is beside it. Parts are written as text; `qsparse.run` trains it.

    Raises:
        SettingError: a field cannot have its value.

    >>> config = RunConfig(algorithm="sgd", lr=0.05, sync_every=4, ranks=2)
    >>> print(config.text().split("augment")[0].strip())
    algorithm = "sgd"
    """

    data: str = _option(
        "digits",
        "digits, mnist, fashion-mnist, cifar10, cifar100, susy, ijcnn1, covtype, rcv1, real-sim, "
        "news20, libsvm:PATH, imagefolder:PATH, or yours; see qsparse list data.",
        names_folder=False,
    )
    data_dir: str | None = _option(
        None, "Where the data lies; else QSPARSE_DATA, the cache, a download.", is_path=True, repeats=True,
        names_folder=False,
    )  # fmt: skip
    model: str = _option(
        "mlp",
        "softmax, logistic, mlp, mlp(WIDTH, …), cnn, cnn(C, C, WIDTH), resnet20, resnet32, resnet10, "
        "resnet18, resnet50, or yours; see qsparse list models.",
    )
    algorithm: str = _option(
        "qsparse-local-sgd",
        "A preset, as NAME or NAME(SETTING=VALUE, …); see qsparse list algorithms.",
        says_method=True,
        names_folder=False,
    )
    compressor: str | None = _option(
        None, "Replace the up link's compressor, e.g. 'topk(ratio=0.01) >> sign'.", says_method=True
    )
    memory: str | None = _option(None, "Replace the up link's memory.", says_method=True)
    down: str | None = _option(None, "Compress the down link, e.g. 'blockwise(sign, size=4096)'.")
    down_memory: str | None = _option(
        None,
        "The down link's memory.  [default: the algorithm's; innovation if it has none and --down is given]",
    )
    local: str | None = _option(None, "Replace the local step, e.g. 'adamw(lr=0.001)'.")
    trigger: str | None = _option(None, "Replace the trigger, e.g. 'randomgap(H=8)'.", says_method=True)
    participation: str | None = _option(
        None, "Leave workers out of rounds, e.g. 'sample(fraction=0.25)'.", says_method=True
    )
    server: str | None = _option(None, "Replace the server rule.", says_method=True)
    meeting: str | None = _option(
        None, "Replace the meeting, e.g. 'asynchronous(ahead=4)'.", says_method=True
    )
    lr: str | float | None = _option(
        None, "Learning rate: a number or a schedule, e.g. 'cosine(0.1)'.", setting="lr"
    )
    momentum: float | None = _option(None, "Of the local steps.", setting="momentum")
    nesterov: bool | None = _option(None, "Nesterov's momentum.", setting="nesterov")
    weight_decay: float | None = _option(None, "Of the local steps.", setting="weight_decay")
    weight_decay_on: str = _option(
        "all",
        "weights: parameters of 2 or more dimensions, so neither biases nor norms.",
        choices=("all", "weights"),
    )
    sync_every: int | None = _option(
        None, "Local steps between meetings.", metavar="H", setting="H", says_method=True
    )
    exchange: str | None = _option(
        None,
        "server, server(root=1, works=false), tree, allgather, sharded, or nodes(outer=server), where one "
        "rank of a machine speaks for it; auto: the fastest of those of all ranks.  [default: auto]",
    )
    link_rate: str | None = _option(
        None,
        "Of each rank's link, each way, e.g. 100mbit; --exchange auto goes by it.  [default: 1gbit, or a "
        "simulated wire's]",
        repeats=True,
        names_folder=False,
    )
    link_latency: str | float | None = _option(
        None,
        "Of a message: 50us, 2ms, or seconds; --exchange auto goes by it.  [default: 50us, or a simulated "
        "wire's]",
        repeats=True,
        names_folder=False,
    )
    wire: str = _option(
        "mpi",
        "mpi: ranks are processes; threads: threads of one process; simulated(rate='1gbit', latency=0.0001, "
        "compute=0.02): threads over a simulated network, in virtual seconds; or yours.",
        repeats=True,
        names_folder=False,
    )
    ranks: int | None = _option(None, "Start this many ranks, unless mpirun did.", names_folder=False)
    epochs: float | None = _option(
        None,
        "Passes over each worker's share.  [default: 60, 400 where each step is one, or as --steps says]",
        names_folder=False,
    )
    steps: int | None = _option(None, "Local steps, instead of epochs.", names_folder=False)
    until: str | float | None = _option(
        None,
        "Stop at the first evaluation with this figure, e.g. train_loss=0.17, test_loss=0.3, "
        "test_accuracy=0.97.",
        metavar="FIGURE=VALUE",
        names_folder=False,
    )
    batch: int | None = _option(
        None, "Examples of one worker's step.  [default: 16; its whole share with gd, lag-*, laq and qgd]"
    )
    augment: str = _option(
        "none",
        "none, or crop-flip: pictures moved by up to 4 pixels, and mirrored or not; or resized-crop-flip: "
        "parts of the pictures of imagefolder:PATH.",
    )
    label_smoothing: float = _option(0.0, "Of cross entropy.")
    clip: float | None = _option(None, "Shorten gradients to this 2-norm.", metavar="NORM")
    precision: str = _option(
        "float32", "float32, or bf16: products and convolutions of training in bfloat16."
    )
    sharding: str = _option("random", "contiguous, random, dirichlet(ALPHA), or yours.")
    evaluations: int = _option(1, "Evaluations an epoch.")
    seed: int = _option(0, "Of everything random.", repeats=True)
    threads: int | None = _option(
        None,
        "Of torch and of the compressors, in each rank.  [default: OMP_NUM_THREADS, or 1]",
        least=1,
        repeats=True,
        names_folder=False,
    )
    out: str | None = _option(
        None,
        "Folder of the results.  [default: runs/DATA-ALGORITHM, and what differs from the defaults]",
        is_path=True,
        by_sweep=True,
        elsewhere=True,
    )
    checkpoint_every: int | None = _option(
        None,
        "Leave a checkpoint in --out at the first meeting after so many steps, at the end, and on SIGTERM.",
        least=1,
        metavar="STEPS",
        elsewhere=True,
    )
    keep: int = _option(3, "Checkpoints that stay.", least=1, elsewhere=True)
    resume: str = _option(
        "none",
        "Go on from the newest whole checkpoint in --out, if there is one, or from that of a path.",
        is_path=True,
        metavar="auto|PATH|none",
        by_sweep=True,
        elsewhere=True,
    )
    straggler: str | None = _option(
        None, "Slow a rank down, e.g. 2:5, to see what that does to the run.", metavar="RANK:FACTOR",
        names_folder=False,
    )  # fmt: skip
    repeat: str | None = _option(
        None,
        "Take asynchronous reports in the order of another run's arrivals.jsonl.",
        is_path=True,
        metavar="FILE",
        repeats=True,
    )
    imports: tuple[str, ...] = _option(
        (),
        "Import a module that registers parts of your own.",
        flag="--import",
        metavar="MODULE",
        repeats=True,
        names_folder=False,
    )
    name: str | None = _option(
        None,
        "What figures call the method.  [default: made of algorithm and compressor]",
        repeats=True,
        names_folder=False,
        by_sweep=True,
    )
    tensorboard: bool = _option(False, "Scalars for TensorBoard too, in folder tb of --out.", elsewhere=True)

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.taken(getattr(self, name)))

    @classmethod
    def read(cls, path: str | os.PathLike[str], **others: Any) -> RunConfig:
        """The configuration in a file, such as the ``config.toml`` of another run.

        Args:
            path: of the file.
            **others: fields that win over those of the file.

        Raises:
            SettingError: the file cannot be read, or has what is no option.
        """
        where = str(path)
        values = by_name(OPTIONS, read_toml(named_path(path), where, SettingError), where)
        return cls(**(values | others))

    def text(self, ranks: int | None = None) -> str:
        """The ``config.toml`` that repeats the run.

        Args:
            ranks: that it had; None: as configured.
        """
        import tomli_w

        values = {name: getattr(self, name) for name in sorted(OPTIONS) if not OPTIONS[name].elsewhere}
        values |= {} if ranks is None else {"ranks": ranks}
        kept = {name: value for name, value in values.items() if value not in (None, ())}
        return tomli_w.dumps(
            {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        )


def _known(name: str, hint: Any, option: Option, default: Any) -> Option:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (get_origin(hint) or hint,)
    kind = next(each for each in (bool, tuple, str, int, float) if each in kinds)
    flag = option.flag or f"--{name.replace('_', '-')}"
    return replace(option, name=name, flag=flag, type=kind, default=default)


#: The options of a run, by name, in the order of the help.
OPTIONS: Final[dict[str, Option]] = {
    each.name: _known(each.name, get_type_hints(RunConfig)[each.name], each.metadata["option"], each.default)
    for each in fields(RunConfig)
}


def by_name(known: Mapping[str, Option], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a file by the names of options; keys may be written as the flags are.

    Args:
        known: the options, by name.
        values: of the file.
        where: what the file is called, for errors.

    Raises:
        SettingError: no option has this name, two keys are one option, or it cannot have such a value.
    """
    flags = {option.flag.lstrip("-"): name for name, option in known.items()}
    names = flags | {name: name for name in known}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise SettingError(f"{where} has {key!r}, which is no option of train: {sorted(flags)}")
        name = names[key]
        if name in found:
            raise SettingError(f"{where} has {key!r} in two spellings: keep one")
        # One module need not be a list; click would take its letters for modules.
        value = [value] if known[name].type is tuple and isinstance(value, str) else value
        if wanted := known[name].unlike(value):
            raise SettingError(f"{where}: {known[name].flag} {wanted}, not {value!r}")
        found[name] = value
    return found
