"""Matched variants over seeds: runs what is missing, then tables, a verdict and figures.

    python compare.py                                       # learned, fixed and affine, 3 seeds
    python compare.py config/learned16.py config/fixed16.py --seeds=1,2,3 --nproc=2
    python compare.py config/studies/codes.py               # docs/studies.md
    python compare.py --report out/studies/codes            # reports, and runs nothing

One config file is one recipe, and its `variants` say what is compared under it. Of the variants
that agree in all but the input layer the first is the baseline of the others. Several config files
are a variant each, the first the baseline.

Every run is `python train.py RUN/config.py` in a process of its own. A run that is complete is not
run again and one that was interrupted goes on, so the same command finishes a study.

With --study_dir=results/NAME --runs_dir=out/NAME the study keeps run.json and metrics.jsonl of
every run beside its report, in results/NAME/runs, and is reported from them when out/ is gone.
"""

import inputcodes  # noqa: F401  # isort: skip  # before PyTorch: Ctrl-C while it loads
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from input_layers import INPUT_FIELDS
from inputcodes import configurator, runs
from inputcodes.checkpoint import ROOT
from inputcodes.configurator import UserError, build, given_values, recorded, run_main, setting
from inputcodes.data import DataSet
from inputcodes.distributed import stop_signals
from inputcodes.figures import draw_study
from inputcodes.files import damage_named, locked, read_json, split_list, write_json, write_text
from inputcodes.report import details_of, make_report, summary_of
from inputcodes.resume import check_architecture, find_start, for_data, start_of, starting_table
from model import GPTConfig
from prepare_data import prepare_missing
from train import TrainConfig

DEFAULT_STUDY = "config/studies/default.py"
USAGE = """usage: python compare.py [config/FILE.py ...] [--name=value ...]
       python compare.py --report DIRECTORY"""


@dataclass(frozen=True)
class CompareConfig(TrainConfig):
    folder_advice: ClassVar[str] = (
        "--report=FOLDER reports a study again, and a run is evaluated by python evaluate.py"
    )

    variants: tuple[str, ...] = setting(
        ("learned", "fixed", "affine"),
        "what to compare, a list of strings (on the command line separated by semicolons): each an "
        "input layer, name=value, or several of them",
    )
    seeds: str = setting("1,2,3", "seeds of the runs of every variant, separated by commas")
    across: str = setting("", "settings in which compared variants may differ, too, as n_layer")
    margin: float = setting(
        0.01, "equivalent: closer than this share of the baseline's loss", above=0, below=1
    )
    study_dir: str = setting("", "folder of the report; empty: out/studies/NAME", is_path=True)
    runs_dir: str = setting(
        "", "folder of the runs; studies may share it; empty: study_dir", is_path=True
    )
    nproc: int = setting(1, "processes per run, under torchrun if there are several", least=1)
    jobs: int = setting(0, "runs at a time; 0: one on a GPU, on a CPU what fits", least=0)
    report: str = setting("", "folder of a study to report again, running nothing", is_path=True)

    def problems(self) -> list[str]:
        problems = super().problems()
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", self.seeds):
            problems.append(f"seeds={self.seeds!r}: expected whole numbers, as 1,2,3")
        elif len(set(self.seed_list)) < len(self.seed_list):
            problems.append(f"seeds={self.seeds!r}: expected each seed once")
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        if unknown := ", ".join(sorted(self.may_differ - known)):
            problems.append(f"across={self.across!r}: expected settings of train.py, not {unknown}")
        if fixed := ", ".join(sorted(self.may_differ & SAME_TOKENS)):
            problems.append(f"across={self.across!r}: compared runs must have the same {fixed}")
        return problems

    @property
    def may_differ(self) -> set[str]:
        return INPUT_FIELDS | set(split_list(self.across))

    @property
    def seed_list(self) -> list[int]:
        return [int(word) for word in self.seeds.split(",")]


# What decides which tokens a run sees and is measured on: the same in all that is compared.
SAME_TOKENS = {
    *("dataset", "vocab_size", "seed", "max_steps", "eval_tokens"),
    *("batch_size", "block_size", "gradient_accumulation_steps"),
}
OWN_FIELDS = {field.name for field in dataclasses.fields(CompareConfig)} - {
    field.name for field in dataclasses.fields(TrainConfig)
}


@dataclass(frozen=True)
class Study:
    config: CompareConfig
    variants: list[runs.Variant]

    @property
    def directory(self) -> Path:
        return Path(self.config.study_dir)

    @property
    def runs_dir(self) -> Path:
        return Path(self.config.runs_dir or self.config.study_dir)

    @property
    def records(self) -> Path:
        """Where the records of the runs are kept, if the runs are elsewhere."""
        return self.directory / "runs"

    def run_dir(self, variant: runs.Variant, seed: int) -> Path:
        return self.runs_dir / (re.sub(r"[^\w.=+-]+", "-", variant.label) + f"-s{seed}")

    def all_runs(self) -> Iterator[tuple[runs.Variant, int, Path]]:
        """All runs, seed by seed, so that an unfinished study has whole pairs."""
        for seed in self.config.seed_list:
            for variant in self.variants:
                yield variant, seed, self.run_dir(variant, seed)

    def run_config(self, variant: runs.Variant, seed: int) -> TrainConfig:
        base, settings = base_of(variant), self.run_settings(variant, seed)
        there, _ = read_base(base)
        check_architecture(Path(base), there, settings)
        return build(TrainConfig, there | settings)

    def run_settings(self, variant: runs.Variant, seed: int) -> dict[str, Any]:
        """What the config file of a run assigns."""
        return variant.settings | {
            "seed": seed,
            "out_dir": str(self.run_dir(variant, seed)),
            "init_from": f"resume,{base_of(variant)}",
        }

    def stored_run(self, variant: runs.Variant, seed: int) -> runs.Run | None:
        """What there is of a run; UserError if it is another than this study's."""
        path = self.run_dir(variant, seed)
        run = runs.read_run(self.records / path.name, TrainConfig)
        if run is None or not run.complete:
            run = runs.read_run(path, TrainConfig) or run
        if run is None or not (run.complete or (path / "last.pt").is_file()):
            return run  # without a checkpoint there is nothing to guard
        # A base decides the architecture. It may be gone by now; that it is the same is compared.
        base = base_of(variant)
        kept = [] if base == "scratch" else dataclasses.fields(GPTConfig)
        inherited = {field.name: run.config[field.name] for field in kept}
        now = dataclasses.asdict(build(TrainConfig, inherited | self.run_settings(variant, seed)))
        now["vocab_size"] = now["vocab_size"] or run.config["vocab_size"]
        now["fine-tuned from"] = str(Path(base))
        its_base = run.record.get("base") or {"out_dir": "scratch"}
        there = run.config | {"fine-tuned from": its_base["out_dir"]}
        free = runs.FREE_FIELDS - {"seed"}
        if lines := runs.differences({"there": [there], "in the study": [now]}, free):
            raise self.another_run(run, lines)
        return run

    def another_run(self, run: runs.Run, lines: Sequence[str]) -> UserError:
        """What to say where a run's place is taken by one that differs as `lines` say."""
        option = "study_dir" if run.path.parent == self.records else "runs_dir"
        advice = f"delete it, or pass another --{option}"
        return UserError("\n".join([f"{run.path} holds another run:", *lines, advice]))

    def report(self) -> str:
        """Write report.json, report.md, the figures and the records of the runs; the summary."""
        config, seeds = self.config, self.config.seed_list
        groups = [
            [(variant, [self.stored_run(variant, seed) for seed in seeds]) for variant in group]
            for group in grouped(self.variants)
        ]
        report = make_report(groups, seeds, config.margin, config.may_differ)
        summary = summary_of(report)
        write_json(self.directory / "report.json", report.to_json())
        write_text(self.directory / "report.md", f"{summary}\n\n{details_of(report)}\n")
        names = draw_study(self.directory, report)
        if self.runs_dir.resolve() != self.directory.resolve():
            for run in (run for group in groups for _, by_seed in group for run in by_seed):
                if run and run.path != (kept := self.records / run.path.name):
                    runs.keep_record(run, kept)
        files = ", ".join(f"{name}.png/.svg" for name in names)
        return f"\n{summary}\n\nmore in {self.directory}: report.md, report.json,\n{files}"


def base_of(variant: runs.Variant) -> str:
    """What a run of `variant` starts from when it is new: scratch, or a run to fine-tune."""
    base = start_of(variant.settings.get("init_from", "scratch"))[1]
    return configurator.local_path(base) or "scratch"


@functools.cache
def read_base(base: str) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """The settings that the run or export to fine-tune decides, and its step and data.

    UserError if there is none.
    """
    if start := find_start(base, Path()):
        settings, record = dataclasses.asdict(start.settings(GPTConfig)), start.record
        return settings, (record["step"], record["data_sha256"])
    return {}, (None, None)


def configure_study(argv: Sequence[str]) -> Study:
    """The study that the config files and `--name=value` words of `argv` describe."""
    files = configurator.config_files(CompareConfig, argv)
    options = [word for word in argv if word not in files]
    files = files or [str(ROOT / DEFAULT_STUDY)]
    for name in given_values(CompareConfig, options).keys() & {"seed", "out_dir"}:
        raise UserError(f"--{name}: every run has its own; pass --seeds=... or --study_dir=...")
    each = [given_values(CompareConfig, [file, *options]) for file in files]
    recipes = [{k: v for k, v in given.items() if k not in OWN_FIELDS} for given in each]
    own = [{k: v for k, v in given.items() if k in OWN_FIELDS} for given in each]
    if len(files) > 1 and any("variants" in values for values in own):
        raise UserError("variants: one config file has them; several files are a variant each")
    if unlike := [k for k in sorted(OWN_FIELDS) if len({repr(v.get(k)) for v in own}) > 1]:
        raise UserError(f"{', '.join(unlike)}: set alike in all files, or on the command line")
    stems = [Path(file).stem for file in files]
    own[0]["study_dir"] = own[0].get("study_dir") or f"out/studies/{'-'.join(stems)}"
    base, _ = read_base(base_of(runs.Variant("", recipes[0])))
    config = build(CompareConfig, base | recipes[0] | own[0])
    variants = variants_of(config.variants, recipes[0], config.may_differ)
    if len(files) > 1:
        variants = [runs.Variant(stem, recipe) for stem, recipe in zip(stems, recipes, strict=True)]
    study = Study(config, variants)
    paths = [path for _, _, path in study.all_runs()]
    if not paths or len(set(paths)) < len(paths):
        labels = ", ".join(repr(variant.label) for variant in variants) or "()"
        raise UserError(f"variants {labels}: expected one or more, none of them twice")
    return study


def variants_of(
    texts: Sequence[str], recipe: dict[str, Any], may_differ: set[str]
) -> list[runs.Variant]:
    """Variants from their words, as "affine code_seed=2": what each changes of the recipe.

    Their groups are the values of all settings that any of them names, `may_differ` aside.
    """
    words = [[w if "=" in w else f"input_layer={w}" for w in text.split()] for text in texts]
    changes = [given_values(TrainConfig, [f"--{word}" for word in each]) for each in words]
    named = sorted({name for given in changes for name in given} - may_differ)
    if own := {"seed", "out_dir"} & set(named):
        raise UserError(f"variants: every run has its own {', '.join(sorted(own))}; leave it out")
    variants = []
    for text, each, given in zip(texts, words, changes, strict=True):
        if not each:
            raise UserError(f"variants: {text!r} changes nothing: name an input layer or a setting")
        if len({word.partition("=")[0] for word in each}) < len(each):
            advice = "separate variants by semicolons"
            raise UserError(f"variants: {text!r} names a setting twice: {advice}")
        settings = recipe | given
        group = [f"{name}={settings.get(name, getattr(TrainConfig, name))}" for name in named]
        pairs = zip(text.split(), each, strict=True)
        kind = [word for word, full in pairs if full.partition("=")[0] in may_differ]
        label = " ".join(text.split())
        variants.append(runs.Variant(label, settings, " ".join(group), " ".join(kind)))
    return variants


def read_study(given: dict[str, Any]) -> Study:
    """The study whose study.json is in the directory `report`; other settings change it."""
    if unknown := given.keys() - {"report", "margin"}:
        raise UserError(f"--report takes --margin alone, not {', '.join(sorted(unknown))}")
    build(CompareConfig, given)  # refuses a margin that cannot be, by its own name
    file = Path(given["report"]) / "study.json"
    if not file.is_file():
        raise UserError(f"no study in {file.parent}: there is no {file} (compare.py makes one)")
    stored = read_json(file, "run the study again")
    with damage_named(file, "run the study again"):
        variants = [
            runs.Variant(**{**each, "settings": recorded(TrainConfig, each["settings"], file)})
            for each in stored["variants"]
        ]
        own = {**stored["compare"], "study_dir": str(file.parent)}
        config = configurator.from_record(CompareConfig, own | given, file)
        configurator.refuse([f"{file}: {problem}" for problem in config.problems()])
        if any(type(text) is not str for v in variants for text in (v.label, v.group, v.kind)):
            raise TypeError("label, group and kind of a variant are strings")
    return Study(config, variants)


def check_before(study: Study) -> None:
    """Prepare or open all data; UserError for what is impossible or not matched."""
    for variant in study.variants:
        words = [word.partition("=")[0] for word in variant.kind.split() if "=" in word]
        config = study.run_config(variant, study.config.seed_list[0])
        if idle := config.without_effect(words):
            what = f"{config.input_layer} input has no {', '.join(idle)}"
            raise UserError(f"variants: {variant.label!r}: {what}; leave it out")
    open_once = functools.cache(lambda *place: DataSet(prepare_missing(*place)))
    for variants in grouped(study.variants):
        facts: dict[str, list[dict[str, Any]]] = {}
        for variant in variants:
            config = study.run_config(variant, study.config.seed_list[0])
            data = open_once(config.data_dir, config.dataset)
            config = for_data(config, data, study.config.nproc)
            stored = [study.stored_run(variant, seed) for seed in study.config.seed_list]
            if None in stored and config.input_layer == "compressed" and config.table_of:
                starting_table(config, data)
            for run in stored:
                if run and run.evaluations and run.record["data_sha256"] != data.sha256:
                    raise study.another_run(run, [f"{data.path} has been made again since"])
            fact = dataclasses.asdict(config)
            fact |= {"tokenizer": data.tokenizer.sha256[:12], "data": data.sha256[:12]}
            begun = next((run for run in stored if run and run.evaluations), None)
            base = begun.facts["fine-tuned from"] if begun else read_base(base_of(variant))[1]
            facts[variant.label] = [fact | {"fine-tuned from": base}]
        free = runs.FREE_FIELDS | study.config.may_differ
        runs.refuse_differences(runs.differences(facts, free))


def grouped(variants: Sequence[runs.Variant]) -> list[list[runs.Variant]]:
    """The variants that agree in all but the input layer, together."""
    names = dict.fromkeys(variant.group for variant in variants)
    return [[variant for variant in variants if variant.group == name] for name in names]


def run_missing(study: Study) -> list[str]:
    """Do the runs that are not complete; return what to say of those that failed."""
    plans: dict[Path, tuple[str, int]] = {}
    for variant, seed, path in study.all_runs():
        run = study.stored_run(variant, seed)
        if run is None or not run.complete:
            config = study.run_config(variant, seed)
            lines = [f"{k} = {v!r}\n" for k, v in study.run_settings(variant, seed).items()]
            plans[path] = "".join(lines), config.max_steps * config.tokens_per_step
    own = {name: getattr(study.config, name) for name in sorted(OWN_FIELDS - {"report"})}
    variants = [dataclasses.asdict(variant) for variant in study.variants]
    write_json(study.directory / "study.json", {"compare": own, "variants": variants})
    nproc = study.config.nproc
    jobs = study.config.jobs or runs.jobs_at_once(study.config.device, nproc)
    return runs.Runner(plans, jobs, nproc).run()


def main(argv: list[str]) -> None:
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        if "report" in (given := given_values(CompareConfig, argv)):
            study = read_study(given)
        else:
            stack.enter_context(stop_signals(runs.stop))
            if {"RANK", "WORLD_SIZE"} <= os.environ.keys():  # which its runs would inherit
                raise UserError(
                    "RANK and WORLD_SIZE are set, as by torchrun: run compare.py with python and"
                    " without them, and with --nproc=2 for runs of two processes each"
                )
            study = configure_study(argv)
            check_before(study)
            for directory in sorted({study.directory.resolve(), study.runs_dir.resolve()}):
                stack.enter_context(locked(directory, wait=False))
            failed = run_missing(study)
        try:
            print(study.report())
        except UserError as error:
            failed.insert(0, str(error))  # the cause, a run that failed, comes last
        configurator.refuse(failed)


if __name__ == "__main__":
    run_main(main, CompareConfig, USAGE)
