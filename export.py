"""Write a run's model and tokenizer as a folder that Hugging Face's libraries read.

    python export.py --out_dir=out --to=hf/mymodel
    python export.py --out_dir=out/sft_default --to=hf/chat --dtype=bfloat16 --push=user/chat
    python export.py --out_dir=out --to=hf/gguf --format=gguf

`AutoModelForCausalLM` and `AutoTokenizer` load the folder without `trust_remote_code`, as a
GPT-NeoX. That format has no codes: the input layer is written out as its table, V x n_embd numbers
(268 MB for 65,536 tokens and a width of 1,024). The settings of the code stand in config.json, so
`python train.py --init_from=hf/mymodel` gives the model without a table back.

`--format=gguf` writes one file for llama.cpp (docs/export.md says how close it is).
"""

import inputcodes  # noqa: F401  # isort: skip  # before PyTorch: Ctrl-C while it loads
import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, save_torch_state_dict
from safetensors import SafetensorError

from input_layers import INPUT_FIELDS
from inputcodes import files, hf
from inputcodes.checkpoint import load_model
from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.gguf_file import refuse_unwritable, write_gguf
from inputcodes.tokenizer import SPECIAL_NAMES, Tokenizer
from model import GPT, count_parameters

SHARD_BYTES = 5 * 10**9  # the largest file of weights, as the hub has it
FILES = {  # what an export writes; the folder may hold a run, too
    "hf": ("model*.safetensors*", "config.json", "generation_config.json", "tokenizer.json",
           "tokenizer_config.json", hf.TOKENIZER, "README.md"),
    "gguf": ("model.gguf", "README.md"),
}  # fmt: skip
CARD_SIGN = "A decoder-only transformer with the input layer"  # by which an export is known
HERE_ALONE = ("data_dir", "out_dir", "init_from", "device")  # settings that say nothing elsewhere

HF_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForCausalLM.from_pretrained({name!r})
```
"""
GGUF_USE = """\
`llama-cli -m model.gguf -p "..."` of llama.cpp continues a text.
"""
CHAT_TEMPLATE = (  # what the documents of training hold; anything else is refused
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('expected system, user or assistant, found role ' ~ message['role']) }}"
    "{% endif %}<|{{ message['role'] }}|>{% set content = message['content'] %}"
    "{% set parts = [{'text': content}] if content is string else content or [none] %}"
    "{% for part in parts %}{% if part['text'] is not string %}"
    "{{ raise_exception('expected text, found ' ~ part) }}"
    "{% endif %}{{ part['text'] }}{% endfor %}<|endofturn|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class ExportConfig(Settings):
    out_dir: str = setting("out", "directory of the run", is_path=True)
    checkpoint: str = setting("best", "by validation loss, or the latest", choices=("best", "last"))
    to: str = setting("", "folder to write; an earlier export in it is replaced", is_path=True)
    format: str = setting("hf", "for transformers, or for llama.cpp", choices=("hf", "gguf"))
    dtype: str = setting("float32", "of the weights", choices=("float32", "bfloat16"))
    license: str = setting("", "licence of the weights for the model card, such as apache-2.0")
    push: str = setting("", "also upload to this repository of the Hugging Face hub: USER/NAME")

    def problems(self) -> list[str]:
        problems = super().problems()
        if not self.to:
            problems.append("to='': expected a folder to write, as in --to=hf/mymodel")
        if self.push.count("/") != bool(self.push):
            problems.append(f"push={self.push!r}: expected USER/NAME")
        for name in ("to", "license", "push"):  # all on the model card
            value = getattr(self, name)
            if not value.isprintable():  # neither are surrogates: bytes that are not UTF-8
                problems.append(f"{name}={value!r}: expected printable characters")
        return problems


def export(config: ExportConfig) -> None:
    out_dir, to = Path(config.out_dir), Path(config.to)
    refuse_to_overwrite(to, out_dir)
    model, record, tokenizer = load_model(out_dir / f"{config.checkpoint}.pt")
    record["config"] |= dataclasses.asdict(model.config)
    del record["tokenizer"], record["checkpoint"]  # a file of its own; of the run alone
    record = without_places(record)
    card = model_card(config, model, record)
    if config.format == "gguf":
        refuse_unwritable(tokenizer)  # before there is a folder
    with files.locked(to, wait=False):
        # The card comes before what it describes: if that fails, the next export may replace it.
        if config.format == "gguf":
            template = CHAT_TEMPLATE if record.get("chat") else ""
            with files.replacing(to / "model.gguf") as partial:
                write_gguf(partial, model, tokenizer, config.dtype, template)
                files.write_text(to / "README.md", card)
        else:
            files.write_text(to / "README.md", card)
            write_hf(to, model, tokenizer, config.dtype, record)
        with files.system_errors("write", to):  # the folder holds one model
            for name in FILES["gguf" if config.format == "hf" else "hf"][:-1]:  # but for the card
                for old in to.glob(name):
                    old.unlink()


def refuse_to_overwrite(to: Path, out_dir: Path) -> None:
    """Raise UserError if the folder has files that an export replaces, but not an export's card.

    Or if it holds another run than `out_dir`.
    """
    if to.resolve() != out_dir.resolve() and [*to.glob("best.pt"), *to.glob("last.pt")]:
        raise UserError(f"{to} holds another run: choose another --to")
    card = to / "README.md"
    with files.system_errors("read", card):
        ours = card.is_file() and CARD_SIGN.encode() in card.read_bytes()
    there = [file for patterns in FILES.values() for name in patterns for file in to.glob(name)]
    if there and not ours:
        raise UserError(f"{there[0]} was not written by export.py: move it, or choose another --to")


def write_hf(
    to: Path, model: GPT, tokenizer: Tokenizer, dtype: str, record: dict[str, Any]
) -> None:
    """Weights, tokenizer and their configurations as transformers reads them."""
    chat = bool(record.get("chat"))
    kind = getattr(torch, dtype)
    weights = {name: weight.to(kind) for name, weight in hf.neox_weights(model).items()}
    try:
        (to / "config.json").unlink(missing_ok=True)  # written last: without it none is whole
        save_torch_state_dict(weights, to, max_shard_size=SHARD_BYTES)  # replaces an earlier one
        for file in hf.weight_files(to):  # which are for their owner alone
            shutil.copymode(to / "README.md", file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {to}: {error}") from error
    files.write_text(to / hf.TOKENIZER, tokenizer.to_json())
    files.write_json(to / "tokenizer.json", hf.tokenizer_json(tokenizer))
    files.write_json(to / "tokenizer_config.json", tokenizer_config(model.config.block_size, chat))
    ends = [tokenizer.end_of_text] + [tokenizer.special["<|endofturn|>"]] * chat
    ids = {"bos_token_id": ends[0], "eos_token_id": ends[0], "pad_token_id": ends[0]}
    described = hf.neox_config(model.config) | ids | {"dtype": dtype}
    described["torch_dtype"] = dtype  # the name in transformers 4
    generation = ids | {"eos_token_id": ends, "max_length": model.config.block_size}
    files.write_json(to / "generation_config.json", generation)
    made = record | {"weights_sha256": hf.weights_sha256(to)}
    files.write_json(to / "config.json", described | {hf.RECORD: made})


def tokenizer_config(block_size: int, chat: bool) -> dict[str, Any]:
    """tokenizer_config.json; in plain models the names of special tokens in a text are text."""
    end = SPECIAL_NAMES[0]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # else AutoTokenizer builds GPT-NeoX's own
        "bos_token": end,  # what a text begins behind
        "eos_token": end,
        "pad_token": end,
        "model_max_length": block_size,
        "padding_side": "left",  # a batch of prompts is continued at its right
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": not chat,  # the template writes role marks as text
    }
    return config | ({"chat_template": CHAT_TEMPLATE} if chat else {})


def without_places(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the checkpoint without the paths of the machine that made it."""
    settings = {k: v for k, v in record["config"].items() if k not in HERE_ALONE}
    settings["table_of"] = Path(settings["table_of"]).name
    base = record.get("base") and record["base"] | {"out_dir": Path(record["base"]["out_dir"]).name}
    return record | {"config": settings, "base": base}


# ---------------------------------------------------------------------------------------------
# The model card


def model_card(config: ExportConfig, model: GPT, record: dict[str, Any]) -> str:
    """README.md of the folder: what the model is and what made it."""
    settings, name = record["config"], Path(config.to).absolute().name
    total, inputs = count_parameters(model.config)
    names = sorted(INPUT_FIELDS - {*model.config.without_effect(INPUT_FIELDS)})
    codes = ", ".join(f"{name}={settings[name]!r}" for name in names if settings[name] != "")
    step_tokens = record["tokens"] // max(1, record["step"])
    rows = {
        "input layer": f"{settings['input_layer']} ({inputs:,} of {total:,} trained numbers)",
        "settings of the input layer": codes,
        "blocks, heads, width": "{n_layer:,}, {n_head:,}, {n_embd:,}".format_map(settings),
        "context": f"{settings['block_size']:,} tokens",
        "vocabulary": f"{model.config.vocab_size:,} tokens",
        "data": f"{settings['dataset']} (SHA-256 {record['data_sha256'][:16]})",
        "trained on": f"{record['tokens']:,} tokens in {record['step']:,} steps",
        "fine-tuned from": (record.get("base") or {}).get("out_dir", ""),
        "recipe": f"AdamW, peak learning rate {settings['learning_rate']:g},"
        f" {step_tokens:,} tokens per step, seed {settings['seed']}",
        **validation(Path(config.out_dir), record),
        "code": f"SHA-256 {record['code_sha256'][:16]}",
    }
    table_rows = [f"| {k} | {v.replace('|', chr(92) + '|')} |" for k, v in rows.items() if v]
    table = "was trained"
    if not inputs:
        table = "holds the fixed vectors of the\ncode, which were not trained"
    begins = "conversation begins with the mark of its first role, as the chat template writes it"
    if not record.get("chat"):
        begins = "text begins after `<|endoftext|>`"
    front = ["library_name: transformers"] * (config.format == "hf")
    front += ["pipeline_tag: text-generation"]
    license_ = json.dumps(config.license, ensure_ascii=False)  # as YAML quotes a text
    front += [f"license: {license_}"] * bool(config.license)
    return f"""\
---
{chr(10).join(front)}
---
# {name}

{CARD_SIGN} `{settings["input_layer"]}`, in the format of
GPT-NeoX. The format asks for an embedding table; here it {table}.

| | |
|---|---|
{chr(10).join(table_rows)}

{GGUF_USE if config.format == "gguf" else HF_USE.format(name=config.push or config.to)}
In training every {begins}. The context ends at {settings["block_size"]:,}
tokens. Weights: {config.dtype}.
"""


def validation(out_dir: Path, record: dict[str, Any]) -> dict[str, str]:
    """Rows of the card: the validation loss of the checkpoint, and its tasks if evaluated."""
    rows, file = {}, out_dir / "evaluation.json"
    advice = "delete it, or move it away, to export without it"
    with files.damage_named(out_dir / "metrics.jsonl", advice):
        for line in files.read_json_lines(out_dir / "metrics.jsonl", damaged="warn"):
            if line["step"] == record["step"] and "val_loss" in line:
                loss, bits = f"{line['val_loss']:.4f}", f"{line['val_bits_per_byte']:.4f}"
                rows["validation loss"] = f"{bits} bits per byte, {loss} nats per token"
    with files.damage_named(file, advice):
        evaluation = files.read_json(file, advice) if file.is_file() else {}
        if evaluation.get("checkpoint_sha256") == record["checkpoint_sha256"]:
            for task, scores in evaluation.get("tasks", {}).items():
                numbers = [f"{k} {v:.4g}" for k, v in scores.items() if isinstance(v, float)]
                rows[task] = ", ".join([*numbers, f"{scores['items']:,} items"])
    return rows


def upload(folder: Path, written: Sequence[Path], repository: str) -> None:
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        names = [file.name for file in written]
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names)
    except Exception as error:  # of the network, the account or the hub
        raise UserError(f"{folder} is written but not uploaded to {repository}: {error}") from error


def main(argv: list[str]) -> None:
    config = configure(ExportConfig, argv)
    export(config)
    to = Path(config.to)
    written = [file for pattern in FILES[config.format] for file in to.glob(pattern)]
    size = sum(file.stat().st_size for file in written)
    reader = "llama.cpp" if config.format == "gguf" else "AutoModelForCausalLM.from_pretrained"
    print(f"{config.to}: {size / 1e6:,.1f} MB, for {reader}")
    if config.push:
        upload(to, written, config.push)
        print(f"uploaded to https://huggingface.co/{config.push}")


if __name__ == "__main__":
    run_main(main, ExportConfig, "usage: python export.py --to=DIR [--name=value ...]")
