"""export.py against transformers: logits, loss, tokens and ids; and the way back into training."""

import ast
import itertools
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import export
import train
from inputcodes import hf
from inputcodes.checkpoint import load_model
from inputcodes.configurator import UserError
from inputcodes.documents import encode_turns
from inputcodes.files import PARTIAL, file_sha256, locked
from inputcodes.resume import find_start
from inputcodes.tokenizer import Tokenizer
from model import INPUT_LAYERS, rotary_angles
from tests.helpers import SMALL, WRONG_PARTS, build_tokenizer, write_data_set, write_run
from tests.test_tokenizer import library_file

TEXT = (
    Path(hf.__file__).read_text() + "Der süße Bär 東京 🦊 naïve don't DON'T 12345\r\n\t \n  x" * 9
)
# The pattern of tiktoken's cl100k_base.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def synthetic_encoding() -> tiktoken.Encoding:
    """A byte-pair encoding of 300 merges of TEXT, with the pattern of a published one."""
    words = Counter(re.findall(r" ?\w+|\s+|\W", TEXT))
    split = {word: [bytes([value]) for value in word.encode()] for word in words}
    ranks = {bytes([value]): value for value in range(256)}
    for _ in range(300):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))
        for parts in split.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = [b"".join(best)]
                i += 1
    special = {"<|endoftext|>": len(ranks) + 2}  # and two ids of no text
    return tiktoken.Encoding(
        "synthetic", pat_str=CL100K, mergeable_ranks=ranks, special_tokens=special
    )


@pytest.fixture(scope="module")
def tokenizers():
    """One of each layout, and a named encoding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "get_encoding", lambda name: synthetic_encoding())
        yield {
            "bytes": Tokenizer(256),
            "ngrams": build_tokenizer(700, [TEXT]),
            "unicode": build_tokenizer(65536, [TEXT]),
            "named": Tokenizer.named("cl100k_base"),
        }


def exported(out: Path, *argv: str) -> Path:
    """The folder of an export of the run in `out`."""
    export.main([f"--out_dir={out}", f"--to={out}/hf", *argv])
    return out / "hf"


def random_strings(count: int) -> list[str]:
    """Strings of everything: pieces of text, control characters, all planes, names of specials."""
    rng = random.Random(5)
    kinds = [
        lambda: TEXT[(i := rng.randrange(len(TEXT))) : i + rng.randrange(12)],
        lambda: chr(rng.randrange(128)) * rng.randrange(1, 4),
        lambda: chr(rng.randrange(0x80, 0x3000)),
        lambda: chr(rng.randrange(0xE000, 0x110000)),
        lambda: rng.choice(["<|endoftext|>", "<|user|>", "'S", "'ſ", " \n", "\r\n", "1234567"]),
    ]
    return ["".join(rng.choice(kinds)() for _ in range(rng.randrange(9))) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bytes", "ngrams", "unicode", "named"])
def test_ids_are_the_same(layout, tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = tokenizers[layout]
    write_run(tmp_path, ours)
    theirs = transformers.AutoTokenizer.from_pretrained(exported(tmp_path))
    theirs.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert len(theirs) == ours.vocab_size
    for text in [TEXT, *random_strings(10_000)]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, text
        assert again(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text


@pytest.mark.parametrize("layer", list(INPUT_LAYERS))
def test_logits_loss_and_greedy_tokens_are_the_same(layer, tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = write_run(tmp_path, tokenizers["ngrams"], input_layer=layer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported(tmp_path))
    theirs.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    ids = torch.randint(700, (3, 32), generator=torch.Generator().manual_seed(0))
    inv_freq = theirs.gpt_neox.rotary_emb.inv_freq  # an error of one unit grows with the position
    assert torch.equal(rotary_angles(2, 32)[1], inv_freq)
    with torch.no_grad():
        logits = ours(ids)
        for model in (theirs, again):
            torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)
        # In float64, where the order of a sum does not show; then what training calls the loss.
        ours_loss, loss = (
            F.cross_entropy(x[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()).item()
            for x in (logits, theirs(ids).logits)
        )
        assert ours_loss == pytest.approx(loss, abs=1e-6)
        assert ours(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(loss, rel=1e-6)
        written = theirs.generate(ids[:1, :4], do_sample=False, max_length=32, eos_token_id=None)
    greedy = [int(token) for token in ours.generate(ids[:1, :4], 28, temperature=0)]
    assert written[0, 4:].tolist() == greedy


def test_prompts_of_several_lengths_are_continued_as_each_alone(tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_run(tmp_path, tokenizers["bytes"])
    model = transformers.AutoModelForCausalLM.from_pretrained(exported(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    together, alone = (
        [
            tokenizer.batch_decode(model.generate(**batch, max_new_tokens=8)[:, -8:])
            for batch in (tokenizer(texts, padding=True, return_tensors="pt") for texts in batches)
        ]
        for batches in ([["a", "def f(x)"]], [["a"], ["def f(x)"]])
    )
    assert together[0] == [*alone[0], *alone[1]]


def test_a_tokenizer_that_puts_texts_between_marks_is_written_without(tokenizers, tmp_path):
    """As the file of Llama 3 does: texts here were never encoded that way."""
    library = pytest.importorskip("tokenizers")
    mark = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [259], "tokens": ["<|endoftext|>"]}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [mark, sequence]}
    template |= {"pair": [sequence, sequence], "special_tokens": special}
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    ours = Tokenizer.from_json(library_file(post_processor=template, truncation=cut, decoder=None))
    write_run(tmp_path, ours)
    theirs = library.Tokenizer.from_file(str(exported(tmp_path) / "tokenizer.json"))
    assert theirs.encode("the other").ids == ours.encode("the other")
    assert theirs.decode(ours.encode("the other")) == "the other"  # the file has no decoder


@pytest.mark.parametrize("layer", list(INPUT_LAYERS))
def test_the_import_is_equal_to_the_last_bit(layer, tokenizers, tmp_path):
    model = write_run(tmp_path, tokenizers["ngrams"], input_layer=layer)
    state = hf.read_export(exported(tmp_path))[0]["model"]
    assert state.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_have_no_place_here_are_not_dropped(dtype, tokenizers, tmp_path):
    """Training in transformers moves the biases, which are zero here, and the table of a code."""
    write_run(tmp_path, tokenizers["ngrams"], input_layer="spelling")
    file = exported(tmp_path, f"--dtype={dtype}") / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight.float() for name, weight in weights.items()}, file)
    hf.read_export(file.parent)  # only saved again, in another precision
    for name in (hf.EMBEDDING, "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"):
        save_file(weights | {name: weights[name] + 0.1}, file)
        with pytest.raises(UserError, match=f"{name} was trained elsewhere"):
            hf.read_export(file.parent)


def test_shards_and_bfloat16(tokenizers, tmp_path, monkeypatch):
    model = write_run(tmp_path, tokenizers["bytes"], input_layer="fixed")
    whole = exported(tmp_path, "--dtype=bfloat16") / "model.safetensors"
    assert whole.stat().st_size < 2.2 * sum(w.numel() for w in hf.neox_weights(model).values())
    (tmp_path / "hf" / "model.gguf").touch()
    monkeypatch.setattr(export, "SHARD_BYTES", 150_000)
    folder = exported(tmp_path)
    assert not whole.exists()  # of the exports before
    assert not (folder / "model.gguf").exists()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file.name for file in folder.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 2
    assert max((folder / file).stat().st_size for file in files) < 155_000
    tensors, record = hf.read_export(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(tensors["model"][name], weight)
    write_run(tmp_path, tokenizers["bytes"], input_layer="affine")  # other weights, the same index
    again = hf.read_export(exported(tmp_path))[1]
    assert json.loads((folder / "model.safetensors.index.json").read_text()) == index
    assert again["checkpoint_sha256"] != record["checkpoint_sha256"]
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match="not a whole export"):
        hf.read_export(folder)


def test_a_record_that_lacks_a_part_is_one_line(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    file = exported(tmp_path) / "config.json"
    config = json.loads(file.read_text())
    for name, damage in WRONG_PARTS:
        if name != "tokenizer":  # a file of its own
            record = config[hf.RECORD] | {name: damage}
            file.write_text(json.dumps(config | {hf.RECORD: record}))
            with pytest.raises(UserError, match=rf"config\.json is damaged \(it lacks {name}\)"):
                hf.read_export(file.parent)


def test_a_run_goes_on_from_an_export(text_data, tmp_path, capsys):
    """As from its checkpoint: the first evaluations agree, and the record says where from."""
    run, data = tmp_path / "run", f"--data_dir={text_data}"
    settings = [f"--{key}={value}" for key, value in SMALL.items()] + [data]
    train.main([*settings, f"--out_dir={run}", "--input_layer=learned"])
    exported(run)
    recipe = ["--dataset=tiny", data, "--batch_size=4", "--max_steps=3", "--warmup_steps=1"]
    for name, source in (("a", run), ("b", run / "hf")):
        train.main([*recipe, f"--out_dir={tmp_path / name}", f"--init_from={source}"])
    write_data_set(tmp_path / "c", [np.arange(300)], [], vocab_size=300)
    with pytest.raises(UserError, match=f" with --tokenizer={run / 'hf' / hf.TOKENIZER}, and"):
        train.main(["--dataset=c", f"--data_dir={tmp_path}", f"--init_from={run / 'hf'}"])
    losses = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("a", "b")]
    keep = [
        [(line["train_loss"], line.get("val_loss")) for line in map(json.loads, text.splitlines())]
        for text in losses
    ]
    assert keep[0] == keep[1]
    assert load_model(tmp_path / "b" / "best.pt")[1]["base"]["out_dir"] == str(run / "hf")
    for name in ("README.md", "config.json"):  # no paths of this machine
        assert str(run) not in (exported(tmp_path / "b") / name).read_text()
    assert "are not those that export.py wrote" not in capsys.readouterr().err
    weights = bytearray((run / "hf" / "model.safetensors").read_bytes())
    weights[-9] ^= 1
    (run / "hf" / "model.safetensors").write_bytes(weights)
    hf.read_export(run / "hf")
    assert "are not those that export.py wrote: another program" in capsys.readouterr().err


def test_a_run_that_holds_its_export_is_still_a_run(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    export.main([f"--out_dir={tmp_path}", f"--to={tmp_path}"])
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1
    assert find_start(str(tmp_path), tmp_path / "new").path == tmp_path / "best.pt"
    (tmp_path / "best.pt").unlink()
    assert find_start(str(tmp_path), tmp_path / "new").path == tmp_path / "model.safetensors"


def test_what_else_the_folder_holds_is_not_uploaded(tokenizers, tmp_path, monkeypatch):
    """With the hub's own choice among the files of a folder."""
    pushed = {}
    monkeypatch.setattr(export.HfApi, "create_repo", lambda api, name, exist_ok: None)
    monkeypatch.setattr(export.HfApi, "upload_folder", lambda api, **how: pushed.update(how))
    write_run(tmp_path, tokenizers["bytes"])
    for name in ("last.pt", "run.json", "config.json.partial"):
        (tmp_path / name).touch()
    export.main([f"--out_dir={tmp_path}", f"--to={tmp_path}", "--push=user/name"])
    names = [file.name for file in tmp_path.iterdir()]
    assert {*filter_repo_objects(names, allow_patterns=pushed["allow_patterns"])} == {
        "README.md", "config.json", "generation_config.json", "input_codes_tokenizer.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_chat_model_has_its_template(tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = tokenizers["ngrams"]
    write_run(tmp_path, ours, chat=True)
    theirs = transformers.AutoTokenizer.from_pretrained(exported(tmp_path))
    turns = [("system", "Be short."), ("user", "def f"), ("assistant", " Hi!\n")]
    messages = [{"role": role, "content": text} for role, text in turns]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == [*encode_turns(ours, turns).tolist(), ours.special["<|assistant|>"]]
    # A conversation of the training data begins behind no other token (packing.ChatRows).
    assert "conversation begins with the mark" in (tmp_path / "hf" / "README.md").read_text()
    ends = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [ours.end_of_text, ours.special["<|endofturn|>"]]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, "ab"),
        ({"role": "user", "content": [{"type": "image"}]}, "expected text, found {'type'"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "expected text, found None"),
        ({"role": "tool", "content": "a"}, "expected system, user or assistant, found role tool"),
    ],
)
def test_a_template_writes_nothing_that_training_does_not(message, expected):
    said = []
    template = jinja2.Template(export.CHAT_TEMPLATE)
    text = template.render(messages=[message], raise_exception=said.append)
    assert said[0].startswith(expected) if said else text == f"<|user|>{expected}<|endofturn|>"


def test_the_card_says_what_made_the_model(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"], input_layer="affine", code_seed=9)
    line = {"step": 7, "val_loss": 2.0, "val_bits_per_byte": 2.8854}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    names = "no", "apache-2.0", 'mine: "é" # all'
    for name in names:
        card = (exported(tmp_path, f"--license={name}") / "README.md").read_text(encoding="utf-8")
        assert ModelCard(card).data.license == name
    for words in ("code_seed=9", "2.8854 bits per byte", "700 tokens in 7"):
        assert words in card
    assert "affine (0 of" in card
    assert "compression" not in card  # which an affine code does not have
    assert str(tmp_path) not in (tmp_path / "hf" / "config.json").read_text()
    other = str(tmp_path / "o|her")
    write_run(tmp_path, tokenizers["bytes"], input_layer="compressed", table_of=other)
    assert "table_of='o\\|her'" in (exported(tmp_path) / "README.md").read_text()


def test_the_card_names_the_folder_whatever_its_name(tokenizers, tmp_path, monkeypatch):
    write_run(tmp_path, tokenizers["bytes"])
    to = tmp_path / 'a "new" \\nice name'
    export.main([f"--out_dir={tmp_path}", f"--to={to}"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    export.main([f"--out_dir={tmp_path}", "--to=."])
    assert "\n# empty\n" in (tmp_path / "empty" / "README.md").read_text()
    program = (to / "README.md").read_text().split("```")[1].removeprefix("python")
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    assert [ast.literal_eval(call.args[0]) for call in calls] == [str(to)] * 2


def test_the_card_has_the_tasks_of_this_very_checkpoint(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    tasks = {"boolq": {"items": 1500, "chance": 0.5, "acc": 0.62, "acc_stderr": None}}
    evaluation = {"checkpoint": "best", "step": 7, "tasks": tasks}
    evaluation["checkpoint_sha256"] = file_sha256(tmp_path / "best.pt")
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    card = (exported(tmp_path) / "README.md").read_text()
    assert "| boolq | chance 0.5, acc 0.62, 1,500 items |" in card
    write_run(tmp_path, tokenizers["bytes"], code_seed=5)  # trained again, to the same step
    assert "boolq" not in (exported(tmp_path) / "README.md").read_text()


def test_an_export_that_fails_leaves_the_one_before(tokenizers, tmp_path, monkeypatch):
    write_run(tmp_path, tokenizers["bytes"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(UserError, match="pip install gguf"):
            exported(tmp_path, "--format=gguf")
        assert not (tmp_path / "hf").exists()
        weights = exported(tmp_path) / "model.safetensors"
        with pytest.raises(UserError, match="pip install gguf"):
            exported(tmp_path, "--format=gguf")
    assert weights.is_file()
    pytest.importorskip("gguf")
    exported(tmp_path, "--format=gguf")
    assert {file.name for file in weights.parent.iterdir()} == {"README.md", "lock", "model.gguf"}
    before = (tmp_path / "hf" / "model.gguf").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("gguf.GGUFWriter.write_tensors_to_file", lambda writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            exported(tmp_path, "--format=gguf")
    assert (tmp_path / "hf" / "model.gguf").read_bytes() == before
    assert not list(weights.parent.glob(f"*{PARTIAL}"))


def test_an_export_that_fails_behind_its_weights_is_none(tokenizers, tmp_path, monkeypatch):
    write_run(tmp_path, tokenizers["bytes"])
    folder = exported(tmp_path)
    write_run(tmp_path, tokenizers["bytes"], code_seed=5)
    with monkeypatch.context() as patch:
        patch.setattr("inputcodes.hf.tokenizer_json", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            exported(tmp_path)
    with pytest.raises(UserError, match=r"expected .* the directory of a run or of an export"):
        find_start(str(folder), tmp_path / "new")
    assert find_start(str(exported(tmp_path)), tmp_path / "new")


def test_no_weights_are_left_without_a_card_by_which_to_replace_them(
    tokenizers, tmp_path, monkeypatch
):
    write_run(tmp_path, tokenizers["bytes"])
    monkeypatch.setattr(export, "refuse_unwritable", lambda _: None)  # gguf may not be there
    monkeypatch.setattr(export, "write_gguf", lambda file, *_: file.touch())
    monkeypatch.setattr("inputcodes.files.write_text", lambda *_: 1 / 0)
    for argv in ([], ["--format=gguf"]):
        with pytest.raises(ZeroDivisionError):
            exported(tmp_path, *argv)
    assert [file.name for file in (tmp_path / "hf").iterdir()] == ["lock"]


def test_two_exports_to_one_folder_at_once_are_not_mixed(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    with (
        locked(tmp_path / "hf", wait=False),
        pytest.raises(UserError, match=r"another process is writing to .*hf: wait for it to end"),
    ):
        exported(tmp_path)


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "model-00001-of-00002.safetensors", "model.gguf"]
)
def test_files_that_no_export_wrote_stay(name, tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / name).write_text("mine")
    for argv in ([], ["--format=gguf"]):
        with pytest.raises(UserError, match=rf"hf/{name} was not written by export\.py: move it"):
            exported(tmp_path, *argv)
    assert [file.read_text() for file in (tmp_path / "hf").iterdir()] == ["mine"]


def test_an_export_into_the_folder_of_another_run_is_refused(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "last.pt").touch()
    with pytest.raises(UserError, match="hf holds another run: choose another --to"):
        exported(tmp_path)


def test_weights_that_cannot_be_written_or_are_not_there_are_one_line(tokenizers, tmp_path):
    write_run(tmp_path, tokenizers["bytes"])
    weights = exported(tmp_path) / "model.safetensors"
    config = weights.with_name("config.json")
    whole = config.read_text()
    for wrong in ('"n_layer": 0', '"n_layer": 3'):
        config.write_text(whole.replace('"n_layer": 2', wrong))
        with pytest.raises(UserError, match=r"^.*hf is not a whole export \(.*\): export .*$"):
            hf.read_export(weights.parent)
    config.write_text(whole)
    tokenizer = weights.with_name(hf.TOKENIZER)
    kept = tokenizer.read_bytes()
    for damaged, message in (
        (kept + b"\xff", rf"^cannot load the tokenizer {tokenizer}: .*utf-8"),
        (tokenizers["ngrams"].to_json().encode(), r"tokenizer\.json is not of this export: export"),
    ):
        tokenizer.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            hf.read_export(weights.parent)
    tokenizer.write_bytes(kept)
    weights.unlink()
    with pytest.raises(UserError, match=r"^.*hf is not a whole export \(.*\): export .*$"):
        hf.read_export(weights.parent)
    weights.mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*hf: .*"):
        exported(tmp_path)


def test_what_cannot_be_exported_or_imported_says_why(tmp_path):
    with pytest.raises(UserError, match=r"to='': expected a folder"):
        export.main(["--push=name"])
    with pytest.raises(UserError, match=r"^license='.udcff': expected printable characters$"):
        export.main([f"--to={tmp_path}", "--license=\udcff"])
    with pytest.raises(UserError, match="no checkpoint"):
        export.main([f"--out_dir={tmp_path}", f"--to={tmp_path}/hf"])
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    with pytest.raises(UserError, match=r"not written by export\.py"):
        train.main([f"--init_from={tmp_path}", f"--out_dir={tmp_path}/run"])
    with pytest.raises(UserError, match=r"is an export: name the run that it was made of"):
        export.main([f"--out_dir={tmp_path}", f"--to={tmp_path}/hf"])


@pytest.mark.parametrize("layout", ["bytes", "ngrams"])
def test_a_gguf_file_holds_weights_and_tokens(layout, tokenizers, tmp_path):
    """Read back with the package; llama.cpp itself, where it is installed, in the next test."""
    gguf = pytest.importorskip("gguf")
    tokenizer = tokenizers[layout]
    model = write_run(tmp_path, tokenizer, input_layer="codeword")
    reader = gguf.GGUFReader(exported(tmp_path, "--format=gguf") / "model.gguf")
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert torch.equal(tensors["blk.1.attn_qkv.weight"], model.blocks[1].attention.qkv.weight)
    vectors = model.input_layer(torch.arange(tokenizer.vocab_size))
    assert torch.equal(tensors["token_embd.weight"], vectors)
    field = reader.fields["tokenizer.ggml.tokens"]
    texts = [bytes(field.parts[i]) for i in field.data]
    assert len({*texts}) == tokenizer.vocab_size
    escaped = "".join(f"\\x{value:02x}" for value in tokenizer.decode_bytes([300 % len(texts)]))
    assert texts[300 % len(texts)].decode() == escaped
    assert texts[tokenizer.end_of_text] == b"\\xff<|endoftext|>"
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "library_name" not in card  # which names transformers in the other format


@pytest.mark.parametrize("layout", ["bytes", "ngrams", "unicode"])
def test_llama_cpp_gives_the_same_ids_and_nearly_the_same_logits(layout, tokenizers, tmp_path):
    pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = tokenizers[layout]
    ours = write_run(tmp_path, tokenizer)
    file = exported(tmp_path, "--format=gguf") / "model.gguf"
    full = {"n_ctx": 32, "logits_all": True, "type_k": 0, "type_v": 0}  # float32 keys and values
    theirs = llama_cpp.Llama(str(file), verbose=False, n_threads=1, **full)
    for text in [TEXT, *random_strings(2000)]:
        if text:
            ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
            assert ids == tokenizer.encode(text), text
    ids = tokenizer.encode(TEXT)[:32]
    theirs.eval(ids)
    logits = torch.tensor(theirs.scores[: len(ids)])
    theirs.close()
    with torch.no_grad():
        expected = ours(torch.tensor([ids]))[0]
    assert (logits - expected).abs().max() < 0.01 * expected.std()


def test_a_tokenizer_with_merges_is_not_written_as_gguf(tokenizers, tmp_path):
    pytest.importorskip("gguf")
    write_run(tmp_path, tokenizers["named"])
    with pytest.raises(UserError, match="merges pairs"):
        exported(tmp_path, "--format=gguf")
