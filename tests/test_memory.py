"""The estimate of a step's memory: against what autograd keeps, and against computed peaks."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import model
from inputcodes.configurator import configure
from inputcodes.distributed import Processes
from inputcodes.progress import memory_report
from inputcodes.resume import memory_needed
from train import TrainConfig

GB = 1e9


class FlashAttention(torch.autograd.Function):
    """Keeps for the backward pass what the kernels of a GPU keep; computes nothing."""

    @staticmethod
    def forward(ctx, q, k, v):
        y = v.transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(q, k, v, y, y.new_empty(y.shape[:-1], dtype=torch.float32))
        return y


def kept_bytes(config: TrainConfig) -> int:
    """What the forward pass up to the loss keeps for the backward pass, but the weights.

    With tensors that have a shape and no memory, so any model can be asked.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    half = config.dtype == "bfloat16"
    with FakeTensorMode():
        gpt = model.GPT(config)
        ids = torch.zeros(config.batch_size, config.block_size, dtype=torch.int64)
        own = {w.untyped_storage()._cdata for w in (*gpt.parameters(), *gpt.buffers())}
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            gpt.hidden(ids)
        return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_grows_with_the_batch_as_what_is_kept(monkeypatch, dtype):
    monkeypatch.setattr(
        model.F,
        "scaled_dot_product_attention",
        lambda q, k, v, **_: FlashAttention.apply(q, k, v),
    )
    words = ["config/fixed32.py", "--n_layer=4", "--vocab_size=256", f"--dtype={dtype}"]
    small, large = (configure(TrainConfig, [*words, f"--batch_size={n}"]) for n in (1, 8))
    states = 7 * 1024 * 4 * (256 + 1024)  # of the loss: logits, and the gradient of its input
    states += 7 * 1024 * 256 * (2 if dtype == "bfloat16" else 0)
    grown = kept_bytes(large) - kept_bytes(small)
    assert memory_needed(large) - memory_needed(small) - states == pytest.approx(grown, rel=0.1)


@pytest.mark.parametrize(
    ("words", "processes", "peak"),
    [
        (["config/fixed32.py", "--batch_size=8"], 1, 25.7),
        (["config/learned32.py", "--batch_size=8"], 1, 26.7),
        (["config/fixed32.py", "--batch_size=8", "--dtype=bfloat16"], 1, 20.7),
        (["config/learned32.py", "--batch_size=8", "--dtype=bfloat16"], 1, 21.8),
        (["config/fixed32.py", "--batch_size=8", "--recompute"], 1, 9.5),
        (["config/fixed32.py"], 2, 25.7 + 1.9),
        (["config/learned32.py"], 2, 26.7 + 2.2),
    ],
)
def test_the_peaks_of_the_papers_model(words, processes, peak):
    """Computed independently, tensor by tensor, on the meta device."""
    assert memory_needed(configure(TrainConfig, words), processes) == pytest.approx(
        peak * GB, rel=0.1
    )


def test_a_table_that_is_stored_and_not_trained_is_in_the_estimate():
    words = ["config/fixed32.py", "--n_layer=1", "--vocab_size=50000", "--n_embd=512"]
    fixed, *stored = (
        memory_needed(configure(TrainConfig, [*words, *more]))
        for more in ([], ["--input_layer=frozen"], ["--input_layer=learned", "--train_table=False"])
    )
    assert stored == pytest.approx([fixed + 4 * 50_000 * 512] * 2, rel=1e-4)


def test_a_gpu_that_is_too_small_is_told_the_split_that_fits(monkeypatch):
    config = configure(TrainConfig, ["config/fixed32.py"])
    pair = Processes(torch.device("cuda:0"), 0, 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    for size, words in (
        (80, "memory: about 27.4 GB besides the program itself, of 80.0 GB (Card)"),
        (24, "--batch_size=8 --gradient_accumulation_steps=400"),
        (16, "--batch_size=4 --gradient_accumulation_steps=800"),
        (11.5, "fit with --recompute --batch_size="),
        (8, "make the model smaller"),
    ):
        card = SimpleNamespace(total_memory=size * GB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        report = memory_report(config, pair)
        assert words in report
        assert ("warning" in report) == (size < 80)
    assert memory_report(config, Processes(torch.device("cpu"))).count("GB") == 1
