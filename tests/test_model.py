"""The model against a plain float64 reference written from the paper, and its contracts."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
import torch

import model as model_module
from codes import affine_code, codeword_code, random_codes
from input_layers import INPUT_FIELDS, INPUT_LAYERS, fixed_layers
from inputcodes import loss as loss_module
from inputcodes.configurator import UserError, configure
from inputcodes.loss import IGNORED, linear_cross_entropy, token_nats
from inputcodes.packing import segment_layout
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig, count_parameters
from train import TrainConfig

SMALL = GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=24, compression=4)


# each token's text is up to 3 letters; 45 to 49 are special tokens
TEXTS = [f"{i:b}"[-3:].encode() if i < 45 else b"" for i in range(50)]


def small_gpt(seed: int = 0, **changes) -> GPT:
    return GPT(dataclasses.replace(SMALL, **changes), seed, TEXTS)


def random_ids(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def reference_logits(gpt: GPT, ids: list[int]) -> np.ndarray:
    """The forward pass of one sequence, a position and a head at a time, in float64 numpy."""
    w = {name: tensor.double().numpy() for name, tensor in gpt.state_dict().items()}
    config = gpt.config
    d, H = config.n_embd, config.n_head
    D = d // H

    def norm(x, scale):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale

    def rotary(x, position):
        out = np.empty(D)
        for i in range(D // 2):
            angle = position * 10_000 ** (-2 * i / D)
            out[i] = x[i] * math.cos(angle) - x[i + D // 2] * math.sin(angle)
            out[i + D // 2] = x[i] * math.sin(angle) + x[i + D // 2] * math.cos(angle)
        return out

    K = math.ceil(math.log2(config.vocab_size))
    code = [[(t // 2**j) % 2 for j in range(K)] for t in range(config.vocab_size)]
    scale = config.code_scale
    xs = [scale * np.array([code[t][i % K] for i in range(d)], dtype=float) for t in ids]
    for b in range(config.n_layer):
        p = f"blocks.{b}."
        qkv = [w[p + "attention.qkv.weight"] @ norm(x, w[p + "norm_1.weight"]) for x in xs]
        for t in reversed(range(len(ids))):
            heads = []
            for h in range(H):
                part = slice(h * D, (h + 1) * D)
                q = rotary(qkv[t][:d][part], t)
                keys = [rotary(qkv[s][d : 2 * d][part], s) for s in range(t + 1)]
                scores = np.exp([q @ key / math.sqrt(D) for key in keys])
                values = [qkv[s][2 * d :][part] for s in range(t + 1)]
                heads.append(sum(s * v for s, v in zip(scores / scores.sum(), values, strict=True)))
            x = xs[t] + w[p + "attention.proj.weight"] @ np.concatenate(heads)
            h = w[p + "mlp.fc.weight"] @ norm(x, w[p + "norm_2.weight"])
            h = np.array([0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in h])
            xs[t] = x + w[p + "mlp.proj.weight"] @ h
    return np.array([w["head.weight"] @ norm(x, w["norm.weight"]) for x in xs])


@pytest.mark.parametrize(("spread", "code_scale"), [(0.3, 1.0), (0.0, 0.01)])
def test_forward_is_the_reference(spread, code_scale):
    """With large weights, so that no scale or projection hides; with small states, whose variance
    is about the epsilon of the norms.
    """
    gpt = small_gpt(code_scale=code_scale)
    with torch.no_grad():
        for name, weight in gpt.named_parameters():
            weight += spread * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            assert weight.dim() in (1, 2), name
    ids = random_ids((1, 12))
    logits = gpt(ids)[0].detach().numpy()
    assert np.abs(logits - reference_logits(gpt, ids[0].tolist())).max() < 1e-4


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_every_input_layer_trains_and_keeps_ids_apart(input_layer):
    gpt = small_gpt(input_layer=input_layer)
    vectors = gpt.input_layer(torch.arange(50)[None])
    assert vectors.shape == (1, 50, 24)
    assert vectors.dtype == torch.float32
    assert len({tuple(row) for row in vectors[0].tolist()}) == 50
    gpt(random_ids((2, 8)), random_ids((2, 8), 1)).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in gpt.parameters())


def test_a_constant_code_at_the_start_of_a_window_is_no_nan_in_a_deep_model(monkeypatch):
    """Its gradient is too large for float32 on the way, and none of any weight's in float64."""
    config = GPTConfig(vocab_size=256, n_embd=64, n_head=2, block_size=4, n_layer=16)
    gradients = []
    for dtype, largest in ((torch.float32, 1e20), (torch.float64, math.inf)):
        monkeypatch.setattr(model_module, "LARGEST_GRADIENT", largest)
        gpt = GPT(config, seed=1).to(dtype)
        with torch.no_grad():
            for weight in gpt.blocks.parameters():
                weight *= 5 if weight.dim() == 2 else 1  # as large as training makes them
        x, y = torch.tensor([[255, 3, 4, 5], [0, 9, 8, 7]]), torch.tensor([[1, 2, 3, 4]] * 2)
        gpt(x, y).backward()
        gradients.append([weight.grad.double() for weight in gpt.parameters()])
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_recomputed_blocks_give_the_same_gradients(monkeypatch, bfloat16):
    ids, targets, gelu = random_ids((3, 16)), random_ids((3, 16), 1), model_module.F.gelu
    places = torch.arange(16).expand(3, -1)
    layout = segment_layout(1 + places // 9, places % 9)  # two texts in a row
    results, calls = [], []
    monkeypatch.setattr(model_module.F, "gelu", lambda x: calls.append(1) or gelu(x))
    for recompute in (False, True):
        gpt = small_gpt()
        gpt.recompute = recompute
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = gpt(ids, targets, layout)
        loss.backward()
        results.append([loss, *(weight.grad for weight in gpt.parameters())])
    assert len(calls) == 2 + 2 * 2  # once for each of two layers, then twice
    assert all(torch.equal(kept, remade) for kept, remade in zip(*results, strict=True))


@pytest.mark.parametrize("of", ["fixed", "affine", "codeword", "spelling", "random"])
def test_frozen_equals_what_it_is_frozen_of_exactly(of):
    ids, targets = random_ids((3, 16)), random_ids((3, 16), 1)
    fixed, frozen = small_gpt(input_layer=of), small_gpt(input_layer="frozen", frozen_of=of)
    assert torch.equal(fixed(ids), frozen(ids))
    fixed(ids, targets).backward()
    frozen(ids, targets).backward()
    for a, b in zip(fixed.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_no_layer_but_tables_holds_numbers_for_each_token_and_position(input_layer):
    config = GPTConfig(vocab_size=65_536, n_embd=1024, n_head=8, input_layer=input_layer)
    with torch.device("meta"):
        layer = INPUT_LAYERS[input_layer](config)
    held = sum(t.numel() for t in (*layer.parameters(), *layer.buffers()))
    assert (held >= 65_536 * 1024 / config.compression) == (
        input_layer in ("learned", "frozen", "compressed", "random")
    )
    if input_layer == "random":  # a bit a number
        assert held == 65_536 * 1024 / 8


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_a_layer_uses_the_settings_that_change_what_it_makes(input_layer):
    texts = [f"{i:06b}".encode() for i in range(50)]  # the first 2 bytes alone tell few apart

    def made(**changes):
        config = dataclasses.replace(SMALL, input_layer=input_layer, **changes)
        layer = GPT(config, 0, texts).input_layer
        vectors = layer(torch.arange(50)[None])
        return vectors.detach(), [weight.requires_grad for weight in layer.parameters()]

    others = {"table_std": 0.5, "compression": 3, "train_table": False, "code_length": 12}
    others |= {"code_seed": 2, "spelling_bytes": 2, "spelling_id": False, "frozen_of": "affine"}
    others |= {"code_scale": 0.25}
    assert others.keys() == INPUT_FIELDS - {"input_layer", "table_of"}
    before = made()
    for name, value in others.items():
        after = made(**{name: value})
        same = before[0].equal(after[0]) and before[1] == after[1]
        config = dataclasses.replace(SMALL, input_layer=input_layer)
        assert same == (config.without_effect([name]) == [name]), name
    frozen = dataclasses.replace(SMALL, input_layer="frozen", frozen_of="codeword")
    assert frozen.without_effect(others) == [
        "table_std",
        "compression",
        "train_table",
        "spelling_bytes",
        "spelling_id",
    ]


@pytest.mark.parametrize("input_layer", ["frozen", *fixed_layers()])
def test_code_scale_is_a_factor_of_every_number(input_layer):
    plain, scaled = (
        small_gpt(input_layer=input_layer, code_scale=scale).input_vectors()
        for scale in (1.0, 0.25)
    )
    assert plain.abs().sum() > 0
    assert scaled.equal(plain / 4)


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_input_layer_works_in_half_precision(input_layer, dtype):
    gpt, ids, targets = small_gpt(input_layer=input_layer), random_ids((2, 16)), random_ids((2, 16))
    exact = gpt(ids, targets).item()
    loss = gpt.to(dtype)(ids, targets)
    loss.backward()
    assert gpt(ids).dtype == dtype
    assert loss.item() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_a_checkpoint_holds_all_that_its_model_needs(input_layer):
    gpt, ids = small_gpt(input_layer=input_layer), random_ids((2, 16))
    weights = gpt.state_dict()
    loaded = small_gpt(1, input_layer=input_layer)
    loaded.load_state_dict(weights)
    assert torch.equal(loaded(ids), gpt(ids))
    stored = {"learned": 50 * 24, "compressed": 50 * 6, "spelling": 50 * 4}
    held = sum(w.numel() for name, w in weights.items() if name.startswith("input_layer."))
    assert held == stored.get(input_layer, 0)


def test_affine_input_is_the_matrix_product():
    layer = small_gpt(input_layer="affine", code_seed=5).input_layer
    code = affine_code(6, seed=5)
    A = np.array([[row >> j & 1 for j in range(6)] for row in code.masks])
    b = np.array([code.shift >> i & 1 for i in range(6)])
    for t in range(50):
        c = np.array([t >> j & 1 for j in range(6)])
        expected = np.tile((A @ c + b) % 2, 4)
        assert layer(torch.tensor([[t]]))[0, 0].tolist() == expected.tolist()


def test_compressed_input_is_a_tiled_table():
    layer = small_gpt(input_layer="compressed").input_layer
    assert layer.weight.shape == (50, 6)
    vector = layer(torch.tensor([[7]]))[0, 0]
    assert torch.equal(vector, torch.cat([layer.weight[7]] * 4))


def test_random_input_is_plus_minus_one_of_the_random_codes():
    layer = small_gpt(input_layer="random", code_length=9).input_layer
    vectors = layer(torch.arange(50)[None])[0]
    assert set(vectors.flatten().tolist()) == {-1.0, 1.0}
    octets = random_codes(50, 9, 1).tolist()
    expected = [[2 * (row[j // 8] >> j % 8 & 1) - 1 for j in range(9)] for row in octets]
    assert vectors[:, :9].tolist() == expected
    assert torch.equal(vectors[:, :9], vectors[:, 9:18])


def test_the_shortest_codewords_are_the_papers_bits_as_signs():
    ids = torch.arange(50)[None]
    codewords = small_gpt(input_layer="codeword", code_length=6).input_layer(ids)
    assert torch.equal(codewords, 2 * small_gpt(input_layer="fixed").input_layer(ids) - 1)
    longer = small_gpt(input_layer="codeword", code_length=10).input_layer(ids)
    assert torch.equal(longer[..., :6], codewords[..., :6])
    assert torch.equal(longer[..., 10:20], longer[..., :10])


@pytest.mark.parametrize(
    ("spelling_id", "most", "n"), [(True, 0, 2), (False, 0, 2), (True, 7, 2), (True, 1, 1)]
)
def test_spelling_is_the_sum_of_codewords_over_the_root_of_their_number(spelling_id, most, n):
    """Against Python integers; tokens 45 to 49 are special, and none has more than 2 bytes."""
    texts = [str(i).encode() for i in range(45)] + [b""] * 5  # all different
    changes = {"spelling_id": spelling_id, "spelling_bytes": most}
    config = dataclasses.replace(SMALL, input_layer="spelling", **changes)
    layer = GPT(config, 0, texts).input_layer

    def codeword(number: int, K: int, seed: int | str) -> np.ndarray:
        masks = codeword_code(K, 24, seed).masks
        return np.array([2 * ((number & mask).bit_count() % 2) - 1 for mask in masks])

    for token, text in enumerate(texts):
        total = np.zeros(24)
        if spelling_id or not text:
            total += codeword(token, 6, 1)
        for place, byte in enumerate(text[:n]):
            total += codeword(256 * place + byte, 7 + n, "1 spelling")  # 256 n numbers
        got = layer(torch.tensor([[token]]))[0, 0]
        assert got.numpy() == pytest.approx(total / math.sqrt(n + spelling_id))


def test_two_tokens_of_one_spelling_are_refused_without_their_ids():
    with pytest.raises(
        UserError, match=r"tokens 4 and 12 both begin with b'100'.*spelling_id=True"
    ):
        small_gpt(input_layer="spelling", spelling_id=False)


def test_a_code_too_short_for_places_and_bytes_says_what_it_needs():
    """1,000 ids have 10 bits, but 9 bytes in 9 places have 12."""
    config = GPTConfig(vocab_size=1000, n_embd=64, input_layer="spelling", code_length=10)
    with pytest.raises(UserError, match="code_length=10: 12 bits need at least 12 positions"):
        INPUT_LAYERS["spelling"](config, Tokenizer(1000, ["\u4e2d\u6587\u5b57"]).texts())


def test_parameters_are_counted_wherever_some_texts_fit_the_code():
    config = GPTConfig(vocab_size=256, n_embd=16, input_layer="spelling", code_length=8)
    for one in (config, dataclasses.replace(config, spelling_bytes=2)):  # of texts of 1 byte
        total = sum(w.numel() for w in GPT(one, 1, Tokenizer(256).texts()).parameters())
        assert count_parameters(one) == (total, 0)


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_every_input_layer_compiles_as_one_graph(input_layer):
    layer, ids = small_gpt(input_layer=input_layer).input_layer, random_ids((2, 8))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids), layer(ids))


def texts_of_a_bpe() -> list[bytes]:
    """As of GPT-2: all bytes, 3,000 random merges of up to 40 bytes, a mark behind them."""
    rng = random.Random(0)
    texts = [bytes([value]) for value in range(256)]
    while len(texts) < 3256:
        new = rng.choice(texts) + rng.choice(texts)
        if len(new) <= 40 and new not in texts:
            texts.append(new)
    return [*texts, b""]


@pytest.mark.parametrize("vocabulary", [256, 1000, 65_536, "bpe"])
@pytest.mark.parametrize("spelling_id", [True, False])
def test_all_tokens_have_different_spelling_codes(vocabulary, spelling_id):
    if vocabulary == "bpe":
        texts = texts_of_a_bpe()
    else:
        grams = ["".join(gram) for gram in itertools.product("abcdeäß中", repeat=3)]
        texts = Tokenizer(vocabulary, grams if vocabulary > 256 else ()).texts()
    V = len(texts)
    config = GPTConfig(
        vocab_size=V, n_embd=64, input_layer="spelling", spelling_id=spelling_id,
        spelling_bytes=40 if vocabulary == "bpe" and not spelling_id else 0,
    )  # fmt: skip
    layer = INPUT_LAYERS["spelling"](config, texts)
    assert layer.spellings.shape == (
        V,
        1 + {256: 1, "bpe": 40 - 24 * spelling_id}.get(vocabulary, 9),
    )
    vectors = layer(torch.arange(V)).numpy()
    assert len({row.tobytes() for row in vectors}) == V


def test_one_seed_gives_all_variants_the_same_other_weights():
    models = {name: small_gpt(seed=3, input_layer=name) for name in INPUT_LAYERS}
    rest = {
        name: {k: v for k, v in gpt.named_parameters() if not k.startswith("input_layer.")}
        for name, gpt in models.items()
    }
    for name, weights in rest.items():
        assert weights.keys() == rest["fixed"].keys()
        for key, weight in weights.items():
            assert torch.equal(weight, rest["fixed"][key]), (name, key)
    other = small_gpt(seed=4)
    assert not torch.equal(other.head.weight, models["fixed"].head.weight)


def test_initial_spread():
    gpt = GPT(GPTConfig(vocab_size=512, n_layer=8, n_head=4, n_embd=256, input_layer="learned"))
    std = {name: weight.std().item() for name, weight in gpt.named_parameters()}
    assert std["input_layer.weight"] == pytest.approx(0.02, rel=0.02)
    wide = small_gpt(input_layer="learned", table_std=0.1)
    narrow = small_gpt(input_layer="learned")
    assert torch.allclose(wide.input_layer.weight, 5 * narrow.input_layer.weight)
    assert torch.equal(wide.head.weight, narrow.head.weight)
    assert std["blocks.3.attention.qkv.weight"] == pytest.approx(0.02, rel=0.02)
    assert std["blocks.3.attention.proj.weight"] == pytest.approx(0.02 / 4, rel=0.02)
    assert std["blocks.3.mlp.proj.weight"] == pytest.approx(0.02 / 4, rel=0.02)


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_initial_loss_is_that_of_a_guess(input_layer):
    gpt = small_gpt(input_layer=input_layer)
    loss = gpt(random_ids((8, 16)), random_ids((8, 16), 1)).item()
    assert loss == pytest.approx(math.log(50), abs=0.1)


def test_no_position_sees_a_later_one():
    gpt, ids = small_gpt(), random_ids((1, 16))
    before = gpt(ids)
    for t in range(16):
        changed = ids.clone()
        changed[0, t:] = (changed[0, t:] + 1) % 50
        after = gpt(changed)
        assert torch.equal(before[0, :t], after[0, :t])
        assert not torch.allclose(before[0, t], after[0, t])


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_overfits_one_batch(input_layer):
    gpt = small_gpt(input_layer=input_layer)
    ids, targets = random_ids((2, 16)), random_ids((2, 16), 1)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = gpt(ids, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("ignored", [(), (0,), range(3, 40)])
@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(monkeypatch, chunk, ignored):
    monkeypatch.setattr(loss_module, "CPU_CHUNK", chunk * 8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(65, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(30, (65,), generator=generator)
    targets[list(ignored)] = IGNORED
    loss = linear_cross_entropy(x, weight, targets)
    plain = torch.nn.functional.cross_entropy(x @ weight.T, targets)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for got, expected in zip(
        torch.autograd.grad(3 * loss, (x, weight)),
        torch.autograd.grad(3 * plain, (x, weight)),
        strict=True,
    ):
        assert torch.allclose(got, expected, atol=1e-7)
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, targets).item() == loss.item()
    each = torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="none")
    assert torch.allclose(token_nats(x, weight, targets), each.float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loss_and_gradients_on_a_gpu(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", 4 * 30 * 7)  # seven tokens at a time
    x, weight = (torch.randn(n, 8, device="cuda", requires_grad=True) for n in (65, 30))
    targets = torch.randint(30, (65,), device="cuda")
    losses = (
        linear_cross_entropy(x, weight, targets),
        torch.nn.functional.cross_entropy(x @ weight.T, targets),
    )
    got, expected = (torch.autograd.grad(loss, (x, weight)) for loss in losses)
    for a, b in zip((losses[0], *got), (losses[1], *expected), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.full((5,), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_texts_sharing_a_row_get_the_logits_they_have_alone():
    """Two texts in a row, then a prompt with three answers; padding behind both."""
    gpt, ids = small_gpt(), random_ids((2, 16))
    segments = torch.tensor([[1] * 6 + [2] * 7 + [-1] * 3, [0] * 5 + [1] * 4 + [2] * 2 + [3] * 5])
    places = [[*range(6), *range(7), 0, 0, 0], [*range(5), *range(5, 9), 5, 6, *range(5, 10)]]
    layout = segment_layout(segments, torch.tensor(places))
    together = gpt(ids, layout=layout)
    for row, own in ((0, range(6)), (0, range(6, 13)), (1, [*range(9)]),
                     (1, [*range(5), 9, 10]), (1, [*range(5), *range(11, 16)])):  # fmt: skip
        alone = gpt(ids[row, list(own)][None])[0]
        assert torch.allclose(together[row, list(own)], alone, atol=1e-6)
    one = gpt(ids, ids, segment_layout(torch.ones_like(ids), torch.arange(16).expand(2, -1)))
    assert one.item() == pytest.approx(gpt(ids, ids).item(), rel=1e-6)


def test_bfloat16_rounds_products_but_neither_softmax_nor_sums(monkeypatch):
    """Seven tokens at a time; against a float32 softmax of rounded logits, and exact gradients."""
    monkeypatch.setattr(loss_module, "CPU_CHUNK", 7 * 2)
    x, weight = torch.randn(65, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (65,))
    exact = torch.nn.functional.cross_entropy(x @ weight.T, targets)
    logits = (x.bfloat16() @ weight.bfloat16().T).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
        nats = token_nats(x, weight, targets)
    rounded = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(rounded.mean().item(), rel=1e-6)
    assert torch.allclose(nats, rounded)
    ours, expected = (torch.autograd.grad(one, (x, weight)) for one in (loss, exact))
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


def config_of(name: str) -> TrainConfig:
    return configure(TrainConfig, [f"config/{name}.py"])


@pytest.mark.parametrize("depth", [9, 16, 32])
def test_learned_minus_fixed_is_the_papers_count(depth):
    learned, learned_input = count_parameters(config_of(f"learned{depth}"))
    fixed, fixed_input = count_parameters(config_of(f"fixed{depth}"))
    assert learned - fixed == learned_input == 67_108_864  # Bochkov, section 5.1
    assert fixed_input == 0


def test_parameters_of_the_32_layer_models_by_hand():
    blocks = 32 * (12 * 1024**2 + 2 * 1024)
    for name in ("fixed32", "affine32", "codeword32", "spelling32"):
        assert count_parameters(config_of(name)) == (blocks + 1024 + 67_108_864, 0)


def test_impossible_shapes_are_refused():
    wrong = GPTConfig(vocab_size=65_536, n_embd=8, n_head=1, input_layer="fixed")
    assert any("n_embd=8: 65536 tokens need 16 bits" in problem for problem in wrong.problems())
    with pytest.raises(ValueError, match="need 16 bits"):
        GPT(wrong)
    for changes, words in (
        ({"n_head": 5}, "n_head=5"),
        ({"n_head": 8}, "n_head=8"),  # heads of an odd width
        ({"input_layer": "fixd"}, "input_layer='fixd'"),
        ({"input_layer": "compressed", "compression": 5}, "compression=5"),
        ({"input_layer": "random", "code_length": 3}, "code_length=3: expected 6 bits"),
        ({"input_layer": "codeword", "code_length": 25}, "to n_embd=24"),
        ({"input_layer": "frozen", "frozen_of": "learned"}, "frozen_of='learned'"),
        ({"n_layer": 0}, "n_layer=0"),
    ):
        (problem,) = dataclasses.replace(SMALL, **changes).problems()
        assert words in problem
    assert dataclasses.replace(SMALL, input_layer="codeword", code_length=24).problems() == []
