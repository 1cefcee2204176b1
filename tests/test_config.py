"""Every shipped configuration loads, and the paper's arithmetic holds (Bochkov, Tables 1 to 4)."""

import dataclasses
from pathlib import Path

import pytest

from autoenc_study import StudyConfig
from bench import BenchConfig
from compare import CompareConfig, configure_study
from evaluate import EvaluateConfig
from export import ExportConfig
from inputcodes.configurator import configure, given_values
from inputcodes.figures import CurveConfig
from prepare_data import PrepareConfig
from sample import SampleConfig
from train import TrainConfig

FILES = sorted(path for path in Path("config").rglob("*.py") if path.stem != "__init__")
STUDIES = [path for path in FILES if path.parent.name == "studies"]


def load(name: str) -> TrainConfig:
    return configure(TrainConfig, [f"config/{name}.py"])


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_file_loads(file):
    cls = {"data": PrepareConfig}.get(file.stem.split("_")[0], TrainConfig)
    if file.parent.name == "studies":
        cls = CompareConfig
    configure(cls, [str(file)])


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (TrainConfig, "out_dir"),
        (SampleConfig, "out_dir"),
        (ExportConfig, "to"),
        (CompareConfig, "study_dir"),
        (CompareConfig, "runs_dir"),
        (CompareConfig, "table_of"),
        (CompareConfig, "dataset"),
        (EvaluateConfig, "data"),
        (PrepareConfig, "show"),
        (BenchConfig, "nanogpt"),
        (BenchConfig, "out"),
        (StudyConfig, "out"),
        (CurveConfig, "file"),
    ],
)
def test_a_tilde_is_the_home_and_a_last_slash_is_nothing(cls, name, monkeypatch):
    """`--dataset=t/`, as a shell completes it, is recorded as t: not as another data set."""
    monkeypatch.setenv("HOME", "/home/me")
    for given in ("~/x", "~/x/"):
        assert given_values(cls, [f"--{name}={given}"])[name] == "/home/me/x"


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_study_is_possible(file):
    study = configure_study([str(file)])
    assert all(
        study.run_config(variant, seed).seed == seed for variant, seed, _ in study.all_runs()
    )


@pytest.mark.parametrize("name", ["learned32", "fixed32", "affine32"])
def test_the_papers_recipe(name):
    config = load(name)
    assert (config.n_layer, config.n_embd, config.n_head) == (32, 1024, 32)
    assert (config.block_size, config.vocab_size) == (1024, 65_536)
    assert (config.learning_rate, config.warmup_steps, config.weight_decay) == (4e-4, 150, 0.1)
    assert (config.grad_clip, config.dtype, config.matmul_precision) == (1.0, "float32", "highest")
    assert config.batch_size == 16
    assert config.tokens_per_step == 3_276_800
    assert config.max_steps == 5216
    assert config.max_steps * config.tokens_per_step == pytest.approx(17.093e9, rel=1e-4)


@pytest.mark.parametrize(
    ("variant", "baseline", "changed"),
    [
        ("fixed32", "learned32", {"input_layer"}),
        ("affine32", "learned32", {"input_layer"}),
        ("fixed16", "learned16", {"input_layer"}),
        ("fixed9", "learned9", {"input_layer"}),
        ("learned16", "learned32", {"n_layer"}),
        ("learned9", "learned32", {"n_layer"}),
        ("sft_fixed32", "sft_learned32", {"input_layer", "init_from"}),
        ("sft_affine32", "sft_learned32", {"input_layer", "init_from"}),
    ],
)
def test_a_variant_is_its_baseline_and_one_line_a_change(variant, baseline, changed):
    ours, theirs = dataclasses.asdict(load(variant)), dataclasses.asdict(load(baseline))
    assert {name for name in ours if ours[name] != theirs[name]} == changed
    lines = Path(f"config/{variant}.py").read_text().split("\n")
    code = [line for line in lines if line and not line.startswith("#")]
    assert len(code) == 1 + len(changed)
    assert code[0] == f"from config.{baseline} import *"


@pytest.mark.parametrize("variant", ["learned", "fixed", "affine"])
def test_the_papers_fine_tuning(variant):
    config = load(f"sft_{variant}32")
    assert (config.init_from, config.input_layer) == (f"out/{variant}32", variant)
    assert config.input_layer == load(f"{variant}32").input_layer
    assert (config.learning_rate, config.warmup_steps, config.weight_decay) == (2e-5, 100, 0.01)
    assert (config.grad_clip, config.dtype, config.matmul_precision) == (1.0, "float32", "highest")
    assert (config.batch_size, config.gradient_accumulation_steps) == (6, 100)
    tokens = config.batch_size * load(f"{variant}32").block_size * 100
    assert tokens == pytest.approx(0.61e6, rel=0.01)  # Table 3


def test_depths_of_table_4():
    assert [load(f"fixed{depth}").n_layer for depth in (9, 16, 32)] == [9, 16, 32]


def test_the_default_run_is_table_free_bytes():
    config = load("default")
    assert (config.input_layer, config.dataset, config.out_dir) == ("fixed", "stdlib", "")
    assert (config.device, config.dtype, config.compile) == ("auto", "float32", False)
