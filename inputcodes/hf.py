"""A model and its tokenizer in the form of Hugging Face's GPT-NeoX, and back.

The blocks of `model.GPT` are those of GPT-NeoX with a sequential residual, rotary positions over
the whole head and no biases, so its weights only need other names, another order of the rows of
query, key and value, and zeros where GPT-NeoX has biases. The input layer becomes its table.

The tokenizer becomes a BPE whose text is cut by this project's own pattern. `ignore_merges` takes a
piece that is a token whole, as tiktoken does; the merges matter to named encodings alone.

Shapes: V vocabulary size, C model width, H heads, D = C / H.
"""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from inputcodes.checkpoint import check_record
from inputcodes.configurator import UserError, from_record
from inputcodes.files import damage_named, file_sha256, read_json, sha256_of_all
from inputcodes.tokenizer import Tokenizer, byte_alphabet
from model import GPT, ROPE_BASE, GPTConfig

RECORD = "input_codes"  # the key of config.json with what made the model
TOKENIZER = "input_codes_tokenizer.json"  # this project's own form, for the import
BLOCK = {  # modules of a block here and there
    "norm_1": "input_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.proj": "attention.dense",
    "norm_2": "post_attention_layernorm",
    "mlp.fc": "mlp.dense_h_to_4h",
    "mlp.proj": "mlp.dense_4h_to_h",
}
EMBEDDING, HEAD = "gpt_neox.embed_in.weight", "embed_out.weight"


def module_names(n_layer: int) -> dict[str, str]:
    """The modules with weights, but for input layer and head: name here to name in GPT-NeoX."""
    names = {
        f"blocks.{i}.{ours}": f"gpt_neox.layers.{i}.{theirs}"
        for i in range(n_layer)
        for ours, theirs in BLOCK.items()
    }
    return names | {"norm": "gpt_neox.final_layer_norm"}


def neox_weights(model: GPT) -> dict[str, Tensor]:
    """The weights of `model` by their GPT-NeoX names, zero biases included."""
    H = model.config.n_head
    weights = {EMBEDDING: model.input_vectors()}
    for name, neox_name in module_names(model.config.n_layer).items():
        weight = model.get_parameter(f"{name}.weight").detach()
        if name.endswith("qkv"):  # (3 H D, C) to (H 3 D, C)
            weight = weight.unflatten(0, (3, H, -1)).transpose(0, 1).flatten(0, 2)
        weights[f"{neox_name}.weight"] = weight.contiguous()
        weights[f"{neox_name}.bias"] = weight.new_zeros(len(weight))
    return weights | {HEAD: model.head.weight.detach()}


def neox_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_act": "gelu",  # the exact one
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": False,
        "tie_word_embeddings": False,
        "attention_bias": True,  # all zero: some readers know no other GPT-NeoX
        "rotary_pct": 1.0,  # these two for transformers 4
        "rotary_emb_base": ROPE_BASE,
        "rope_parameters": {  # and for transformers 5
            "rope_type": "default",
            "rope_theta": ROPE_BASE,
            "partial_rotary_factor": 1.0,
        },
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    special = {token_id: name for name, token_id in tokenizer.special.items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": token_id, "content": name, **plain, "special": True}
        for token_id, name in sorted(special.items())
        if not name.startswith("<|reserved_")
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False  # `split` has done it
    if tokenizer.tokenizers_json:
        file: dict[str, Any] = json.loads(tokenizer.tokenizers_json)
        file["decoder"] = byte_level  # which gives every text back; a file may have none
        # Here a text is never cut, filled up or put between special tokens.
        file |= dict.fromkeys(("truncation", "padding", "post_processor"))
        known = {token["content"] for token in file["added_tokens"]}
        file["added_tokens"] += [token for token in added if token["content"] not in known]
        return file
    alphabet = byte_alphabet()
    texts = [tokenizer.decode_bytes([token_id]) for token_id in range(tokenizer.vocab_size)]
    vocab = {
        special.get(token_id) or "".join(alphabet[value] for value in text): token_id
        for token_id, text in enumerate(texts)
    }
    merges = []  # all ways to put a token together, in the order of the ids, as in tiktoken
    for token, token_id in vocab.items():
        if token_id not in special:
            halves = [(token[:i], token[i:]) for i in range(1, len(token))]
            merges += [list(pair) for pair in halves if pair[0] in vocab and pair[1] in vocab]
    pattern = {"Regex": _for_oniguruma(tokenizer.pattern)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
    }


def _for_oniguruma(pattern: str) -> str:
    """The pattern in the syntax of `tokenizers`, where three things mean something else."""
    pattern = pattern.replace("(?s:", "(?m:")  # the dot matches line ends
    pattern = re.sub(r"(?<!\\)\$", r"\\z", pattern)  # the end of the text, not of a line
    return re.sub(r"(?<=\})\+", "", pattern)  # {1,3}+ would be {1,3} once or more


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of an export: several, of a large model."""
    return sorted(folder.glob("model*.safetensors"))


def weights_sha256(folder: Path) -> str:
    hashes = [file_sha256(file) for file in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else sha256_of_all(hashes)


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the record of a folder that export.py wrote, as of a checkpoint.

    The input layer is built from its settings; a trained one is read from the table.
    """
    record = read_json(folder / "config.json").get(RECORD)
    if not isinstance(record, dict):
        raise UserError(f"{folder} was not written by export.py: its config.json lacks {RECORD!r}")
    if record.get("best_val_loss", 0) is None:  # JSON has no infinity: there was no evaluation
        record["best_val_loss"] = math.inf
    sha256 = record["checkpoint_sha256"] = weights_sha256(folder)
    if record.get("weights_sha256", sha256) != sha256 and os.environ.get("RANK", "0") == "0":
        print(
            f"note: the weights in {folder} are not those that export.py wrote: another program"
            " saved them again, or they are damaged",
            file=sys.stderr,
        )
    with damage_named(folder / "config.json", "export the run again"):
        check_record(record, elsewhere={"tokenizer"})
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.sha256 != record["tokenizer_sha256"]:
        raise UserError(f"{folder / TOKENIZER} is not of this export: export the run again")
    try:
        config = from_record(GPTConfig, record["config"], folder / "config.json")
        model = GPT(config, texts=tokenizer.texts())
        weights = model.state_dict()
        files = map(load_file, weight_files(folder))
        there = {name: weight.float() for file in files for name, weight in file.items()}
        for name, neox_name in module_names(config.n_layer).items():
            weight = there[f"{neox_name}.weight"]
            if name.endswith("qkv"):  # (H 3 D, C) to (3 H D, C)
                weight = weight.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)
            weights[f"{name}.weight"] = weight.contiguous()
        weights["head.weight"] = there[HEAD if HEAD in there else "lm_head.weight"]
        if (trained := weights.get("input_layer.weight")) is not None:
            weights["input_layer.weight"] = there[EMBEDDING][:, : trained.shape[1]].contiguous()
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not a whole export ({error}): export the run again"
        ) from error
    _refuse_what_has_no_place(folder, model, there)
    return {"model": weights}, record


def _refuse_what_has_no_place(folder: Path, model: GPT, there: dict[str, Tensor]) -> None:
    """Raise UserError if an export of `model` would differ from the tensors in the folder."""
    rounding = 2**-8  # of bfloat16; zeros stay zeros
    for name, weight in neox_weights(model).items():
        if name in there and not torch.allclose(there[name], weight, rtol=rounding, atol=0):
            raise UserError(
                f"{folder}: {name} was trained elsewhere, or is damaged, and a model of this"
                " program has no place for it: start from an export whose biases are zero and"
                f" whose table is that of its input layer, {model.config.input_layer}"
            )
