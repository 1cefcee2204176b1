"""A model and its tokenizer as one GGUF file, the GPT-NeoX of llama.cpp.

llama.cpp's "rwkv" tokenizer takes the longest token at every byte: with the texts of the byte,
n-gram and 65,536 layouts that gives their ids.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inputcodes.configurator import UserError
from inputcodes.tokenizer import Tokenizer
from model import GPT, ROPE_BASE, GPTConfig

BLOCK = {  # modules of a block here and there
    "norm_1": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.proj": "attn_output",
    "norm_2": "ffn_norm",
    "mlp.fc": "ffn_up",
    "mlp.proj": "ffn_down",
}


def refuse_unwritable(tokenizer: Tokenizer) -> None:
    """Raise UserError if the package is missing, or llama.cpp would give other ids."""
    if not importlib.util.find_spec("gguf"):
        raise UserError("--format=gguf needs the package gguf: pip install gguf")
    if "ngrams" not in json.loads(tokenizer.to_json()):
        raise UserError(
            "--format=gguf: this run's tokenizer merges pairs, and llama.cpp's greedy one would"
            " give other ids; --format=hf is exact"
        )


def write_gguf(
    file: Path, model: GPT, tokenizer: Tokenizer, dtype: str, chat_template: str
) -> None:
    """Write the file, matrices in `dtype` (float32 or bfloat16)."""
    import gguf

    writer = gguf.GGUFWriter(None, "gptneox")
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, chat_template)
    plain = gguf.GGMLQuantizationType.F32
    matrices = gguf.GGMLQuantizationType.BF16 if dtype == "bfloat16" else plain
    for name, weight in gguf_weights(model).items():
        kind = matrices if weight.dim() == 2 else plain
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: GPTConfig) -> None:
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_rope_dimension_count(config.n_embd // config.n_head)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_eps(1e-5)
    writer.add_parallel_residual(False)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, chat_template: str) -> None:
    normal, control = 1, 3  # kinds of tokens in llama.cpp
    # A byte that no text holds keeps the names of special tokens from being read in a text; a chat
    # needs them read.
    mark = "" if chat_template else r"\xff"
    texts = ["".join(f"\\x{value:02x}" for value in text) for text in tokenizer.texts()]
    kinds = [normal] * len(texts)
    for name, token_id in tokenizer.special.items():
        texts[token_id], kinds[token_id] = mark + name, control
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)
    if chat_template:
        writer.add_eot_token_id(tokenizer.special["<|endofturn|>"])
        writer.add_chat_template(chat_template)


def gguf_weights(model: GPT) -> dict[str, Tensor]:
    """The weights by llama.cpp's names; the rows of queries, keys and values stay as they are."""
    names = {"norm": "output_norm"}
    for i in range(model.config.n_layer):
        names |= {f"blocks.{i}.{ours}": f"blk.{i}.{theirs}" for ours, theirs in BLOCK.items()}
    weights = {
        "token_embd.weight": model.input_vectors(),
        "output.weight": model.head.weight.detach(),
    }
    for name, gguf_name in names.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        weights[f"{gguf_name}.weight"] = weight
        weights[f"{gguf_name}.bias"] = torch.zeros(len(weight))
    return weights
