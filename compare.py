"""Matched variants over seeds: runs what is missing, then tables, a verdict and figures.

    python compare.py                                       # learned, fixed and affine, 3 seeds
    python compare.py config/learned16.py config/fixed16.py --seeds=1,2,3 --nproc=2
    python compare.py config/study_recodings.py             # README: "Studies"
    python compare.py --report out/study                    # reports, and runs nothing

One config file is one recipe, and its `variants` say what is compared under it. Of the variants
that agree in all but the input layer the first is the baseline of the others. Several config files
are a variant each, the first the baseline.

Every run is `python train.py RUN/config.py` in a process of its own. A run that is complete is not
run again and one that was interrupted goes on, so the same command finishes a study. report.py
says what is reported, figures.py how it is drawn.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoint import HERE
from configurator import UserError, build, given_values, help_text, run_main, setting
from processes import Processes
from report import INPUT_FIELDS, Variant, not_matched, read_run, unmatched_settings, write_report
from start import TrainConfig, open_data, resolve

DEFAULT_STUDY = "config/study.py"
USAGE = """usage: python compare.py [config/FILE.py ...] [--name=value ...]
       python compare.py --report DIRECTORY"""


@dataclass(frozen=True)
class CompareConfig(TrainConfig):
    """A recipe, and what to compare under it."""

    variants: str = setting(
        "learned; fixed; affine",
        "what to compare, separated by semicolons: an input layer, name=value, or several of them",
    )
    seeds: str = setting("1,2,3", "of the runs of every variant, separated by commas")
    margin: float = setting(0.01, "equivalent: closer than this share of the baseline's loss")
    study_dir: str = setting("", "where the report goes; empty: out/NAME for config/NAME.py")
    runs_dir: str = setting("", "where the runs go; studies may share it; empty: study_dir")
    nproc: int = setting(1, "processes a run, under torchrun where there are several")
    jobs: int = setting(0, "runs at a time; 0: one, or on a CPU as many as it has cores for")
    unmatched: bool = setting(False, "report runs that differ in more, without a verdict")

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        found = super().problems()
        if not all(word.isdigit() for word in self.seeds.split(",")):
            found.append(f"seeds={self.seeds!r}: expected whole numbers, as 1,2,3")
        elif len(set(self.seed_list)) < len(self.seed_list):
            found.append(f"seeds={self.seeds!r}: one is there twice")
        if not 0 < self.margin < 1:
            found.append(f"margin={self.margin}: expected a share of the loss, as 0.01")
        if self.nproc < 1 or self.jobs < 0:
            found.append(f"nproc={self.nproc}, jobs={self.jobs}: expected at least 1 and 0")
        return found

    @property
    def seed_list(self) -> list[int]:
        return [int(word) for word in self.seeds.split(",")]


OWN_FIELDS = {field.name for field in dataclasses.fields(CompareConfig)} - {
    field.name for field in dataclasses.fields(TrainConfig)
}


@dataclass(frozen=True)
class Study:
    """What is compared, where its runs are, and where its report goes."""

    config: CompareConfig
    variants: list[Variant]

    @property
    def directory(self) -> Path:
        return Path(self.config.study_dir)

    def run_dir(self, variant: Variant, seed: int) -> Path:
        """Where the run of `variant` with `seed` is."""
        name = variant.label.replace(" ", "-")
        return Path(self.config.runs_dir or self.config.study_dir) / f"{name}-s{seed}"

    def runs(self) -> Iterator[tuple[Variant, int, Path]]:
        """All runs, seed by seed, so that an unfinished study has whole pairs."""
        for seed in self.config.seed_list:
            for variant in self.variants:
                yield variant, seed, self.run_dir(variant, seed)

    def run_config(self, variant: Variant, seed: int) -> TrainConfig:
        """The configuration of one run; UserError with all that is impossible about it."""
        return build(TrainConfig, self.run_settings(variant, seed))

    def run_settings(self, variant: Variant, seed: int) -> dict[str, Any]:
        """What the config file of a run assigns."""
        base = variant.settings.get("init_from", "scratch")
        return variant.settings | {
            "seed": seed,
            "out_dir": str(self.run_dir(variant, seed)),
            "init_from": base if base.startswith("resume") else f"resume,{base}",
        }

    def write(self) -> None:
        """study.json, from which `--report` reads what the study is."""
        own = {name: getattr(self.config, name) for name in sorted(OWN_FIELDS)}
        text = json.dumps({**own, "runs": [dataclasses.asdict(v) for v in self.variants]}, indent=1)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "study.json").write_text(text + "\n")


def configure_study(argv: Sequence[str]) -> Study:
    """The study that the config files and `--name=value` words of `argv` describe."""
    files = [word for word in argv if not word.startswith("-")] or [DEFAULT_STUDY]
    options = [word for word in argv if word.startswith("-")]
    each = [given_values(CompareConfig, [file, *options]) for file in files]
    given = each[0]
    given.setdefault("study_dir", "out/" + "-".join(Path(file).stem for file in files))
    config = build(CompareConfig, given)
    train = [{k: v for k, v in values.items() if k not in OWN_FIELDS} for values in each]
    if len(files) > 1:
        if "variants" in given:
            raise UserError("variants: one config file has them; several files are a variant each")
        labels = [Path(file).stem for file in files]
        variants = [Variant(*pair) for pair in zip(labels, train, strict=True)]
    else:
        variants = [variant_of(text, train[0]) for text in config.variants.split(";")]
        labels = [variant.label for variant in variants]
    if len(set(labels)) < len(labels):
        raise UserError(f"variants: one is there twice in {', '.join(labels)}")
    return Study(config, variants)


def variant_of(text: str, recipe: dict[str, Any]) -> Variant:
    """A variant from its words, as "affine code_seed=2": what it changes of the recipe."""
    words = [word if "=" in word else f"input_layer={word}" for word in text.split()]
    changes = given_values(TrainConfig, [f"--{word}" for word in words])
    apart = [word for word in words if word.partition("=")[0] not in INPUT_FIELDS]
    return Variant(" ".join(text.split()), recipe | changes, " ".join(apart))


def read_study(directory: Path) -> Study:
    """The study whose study.json is in `directory`."""
    file = directory / "study.json"
    if not file.is_file():
        raise UserError(f"no study in {directory}: there is no {file} (compare.py makes one)")
    stored = json.loads(file.read_text())
    variants = [Variant(**variant) for variant in stored.pop("runs")]
    return Study(CompareConfig(**stored | {"study_dir": str(directory)}), variants)


def check_before(study: Study) -> None:
    """Prepare or open all data; UserError for what is impossible or not matched."""
    for variant in study.variants:
        config = study.run_config(variant, study.config.seed_list[0])
        data = open_data(config, Processes(torch.device("cpu")))
        resolve(config, data, study.config.nproc)
    for variants in grouped(study.variants):
        configs = {v.label: dataclasses.asdict(study.run_config(v, 0)) for v in variants}
        if (found := unmatched_settings(configs)) and not study.config.unmatched:
            raise not_matched(found)


def grouped(variants: Sequence[Variant]) -> list[list[Variant]]:
    """The variants that agree in all but the input layer, together."""
    names = dict.fromkeys(variant.group for variant in variants)
    return [[variant for variant in variants if variant.group == name] for name in names]


class Runner:
    """The runs of a study that are not complete, some at a time, under one progress bar."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.waiting: list[tuple[Path, int]] = []  # with their tokens at the end
        self.active: dict[Path, subprocess.Popen[bytes]] = {}
        for variant, seed, path in study.runs():
            config = study.run_config(variant, seed)
            if not is_complete(path, config):
                self.waiting.append((path, config.max_steps * config.tokens_per_step))
                path.mkdir(parents=True, exist_ok=True)
                lines = [f"{k} = {v!r}\n" for k, v in study.run_settings(variant, seed).items()]
                (path / "config.py").write_text("".join(lines))
        self.all = list(self.waiting)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        nproc, jobs = study.config.nproc, study.config.jobs
        on_cpu = config.device == "cpu" or not torch.cuda.is_available()
        self.jobs = jobs or (max(1, min((cores or 1) // nproc, len(self.all))) if on_cpu else 1)
        threads = max(1, (cores or 1) // (self.jobs * nproc))
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}

    def run(self) -> None:
        """Return when all are complete. UserError, with its last words, if one fails."""
        bar = {"total": sum(tokens for _, tokens in self.all), "unit": "tokens", "ncols": 80}
        bar |= {"unit_scale": True, "initial": self.done(), "smoothing": 0.05}
        with terminating(), tqdm(**bar) as progress:
            try:
                while self.waiting or self.active:
                    if self.waiting and len(self.active) < self.jobs:
                        self.start(self.waiting.pop(0)[0])
                    time.sleep(0.2)
                    for path, process in list(self.active.items()):
                        if process.poll() is not None:
                            self.check(path, self.active.pop(path))
                    left = len(self.waiting) + len(self.active)
                    progress.set_description_str(f"{left} of {len(self.all)} runs left", False)
                    progress.update(self.done() - progress.n)
            finally:
                for process in self.active.values():
                    process.terminate()  # it saves
                for process in self.active.values():
                    process.wait()

    def start(self, path: Path) -> None:
        command = [sys.executable]
        if self.study.config.nproc > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={self.study.config.nproc}"]
        with open(path / "log.txt", "wb") as log:
            self.active[path] = subprocess.Popen(
                [*command, str(HERE / "train.py"), str(path / "config.py")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

    def check(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        """UserError if the run that has ended did not come to its end."""
        run = read_run(path)
        if process.returncode or run is None or not run.complete:
            log = (path / "log.txt").read_text(errors="replace").strip().splitlines()
            raise UserError(
                "\n".join([f"{path} failed; the end of {path / 'log.txt'}:", *log[-5:]])
            )

    def done(self) -> int:
        """Tokens trained on so far, of the runs that are not complete at the start."""
        return sum(tokens_of(path) for path, _ in self.all)


def tokens_of(path: Path) -> int:
    """Where a run stands by its metrics."""
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # being written
            return int(json.loads(line)["tokens"])
    return 0


def is_complete(path: Path, config: TrainConfig) -> bool:
    """Whether the run in `path` has ended; UserError if it is not the run of `config`."""
    run = read_run(path)
    if run is None or not run.complete:
        return False
    now = dataclasses.asdict(config) | {"vocab_size": run.config["vocab_size"]}
    if found := unmatched_settings({"there": run.config, "asked for": now}, also_inputs=True):
        raise UserError(
            "\n".join(
                [f"{path} holds another run:", *found, "delete it, or choose another --runs_dir"]
            )
        )
    return True


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM ends this program as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str]) -> None:
    """Run and report a study, or report one; see the module's docstring."""
    if {"-h", "--help"} & set(argv):
        print(help_text(CompareConfig, USAGE))
        return
    if argv and argv[0].partition("=")[0] == "--report":
        words = [word for word in (argv[0].partition("=")[2], *argv[1:]) if word]
        if len(words) != 1:
            raise UserError("--report: expected one directory, as --report out/study")
        study = read_study(Path(words[0]))
    else:
        study = configure_study(argv)
        check_before(study)
        study.write()
        try:
            Runner(study).run()
        except KeyboardInterrupt:
            raise UserError("stopped; the runs are saved and the same command goes on") from None
    seeds = study.config.seed_list
    groups = [
        [(variant, [read_run(study.run_dir(variant, seed)) for seed in seeds]) for variant in group]
        for group in grouped(study.variants)
    ]
    print(write_report(study.directory, groups, study.config.margin, study.config.unmatched))


if __name__ == "__main__":
    run_main(main)
