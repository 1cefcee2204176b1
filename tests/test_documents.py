"""Conversations: what is read, what is left out, and which tokens are learned."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inputcodes import corpus
from inputcodes.configurator import UserError
from inputcodes.corpus import docstring_rows
from inputcodes.data import DataSet
from inputcodes.documents import Item, LeftOut, encode_turns, read_chat, read_item, response_mask
from inputcodes.tokenizer import Tokenizer
from prepare_data import PrepareConfig, prepare
from tests.helpers import build_tokenizer, prepare_config, write_json_lines, write_parquet

TURNS = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2 ✓"), ("user", "<|user|>"),
         ("assistant", "<|endofturn|>")]  # fmt: skip
CHAT = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
PAIR = {"prompt": "Say hi", "response": "hi"}
UNICODE = build_tokenizer(65536, ["Be brief. <|user|> <|endofturn|>"] * 3)


@pytest.mark.parametrize("tokenizer", [Tokenizer(256), UNICODE], ids=["bytes", "unicode"])
def test_turns_stand_between_marks_that_no_text_can_forge(tokenizer: Tokenizer) -> None:
    ids = encode_turns(tokenizer, TURNS).tolist()
    names = {number: name for name, number in tokenizer.special.items()}
    shown = [names.get(number, tokenizer.decode([number])) for number in ids]
    marks = [name for number, name in zip(ids, shown, strict=True) if number in names]
    expected = [mark for role, _ in TURNS for mark in (f"<|{role}|>", "<|endofturn|>")]
    assert marks == expected
    assert tokenizer.decode(ids) == "".join(f"<|{r}|>{text}<|endofturn|>" for r, text in TURNS)


@pytest.mark.parametrize("tokenizer", [Tokenizer(256), UNICODE], ids=["bytes", "unicode"])
def test_only_what_the_assistant_says_is_learned(tokenizer: Tokenizer) -> None:
    """The mask against a walk over the tokens, one state at a time."""
    end = [tokenizer.end_of_text]
    pair = [("user", "Say hi"), ("assistant", "hi")]
    tokens = [*tokenizer.encode("text before"), *end, *encode_turns(tokenizer, TURNS), *end,
              *encode_turns(tokenizer, pair), *end]  # fmt: skip
    special, speaker, expected = tokenizer.special, "", []
    for token in tokens:
        expected.append(speaker == "assistant" and token != tokenizer.end_of_text)
        if token == special["<|endofturn|>"]:
            speaker = ""
        for role in ("system", "user", "assistant"):
            speaker = role if token == special[f"<|{role}|>"] else speaker
    mask = response_mask(tokenizer, np.array(tokens, dtype=np.uint16))
    assert mask.tolist() == expected
    learned = [token for token, said in zip(tokens, mask, strict=True) if said]
    said = [f"{text}<|endofturn|>" for text in ("2 ✓", "<|endofturn|>", "hi")]
    assert tokenizer.decode(learned) == "".join(said)


def test_prompts_and_responses_are_conversations_of_two_turns() -> None:
    said = [("user", "Say hi"), ("assistant", "hi")]
    assert [turn[:2] for turn in read_chat(PAIR)] == said
    assert [turn[:2] for turn in read_chat(CHAT)] == TURNS
    assert [turn[:2] for turn in read_chat(CHAT | PAIR)] == TURNS


HI = [("user", "Say hi"), ("assistant", "hi")]
PARTS = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi"}]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Say hi", "completion": "hi"}, HI),
        ({"prompt": [{"role": "user", "content": "Say hi"}],
          "completion": [{"role": "assistant", "content": "hi"}]}, HI),
        *(({"instruction": said, "input": more, "output": "hi"}, HI)
          for said, more in (("Say hi", ""), ("Say hi", " \n"), ("", "Say hi"))),
        ({"instruction": "Say", "input": "it", "output": "hi"},
         [("user", "Say\n\nit"), ("assistant", "hi")]),
        ({"conversations": [{"from": "human", "value": "Say hi"}, {"from": "gpt", "value": "hi"}]},
         HI),
        ({"messages": [{"role": "user", "content": PARTS, "from": None},
                       {"role": "assistant", "content": "hi", "tool_calls": None}]}, HI),
        ({"messages": [{"role": "developer", "content": "d"}, {"role": "tool", "content": "t"},
                       {"role": "assistant", "content": "hi"}]},
         [("system", "d"), ("user", "t"), ("assistant", "hi")]),
        ({"conversations": [{"from": "human", "value": "Say hi"}, {"from": "gpt", "value": "hi"}],
          "system": "Be kind"}, [("system", "Be kind"), *HI]),
        ({"messages": [{"role": role, "content": text} for role, text in TURNS], "system": "twice"},
         TURNS),
        ({"instruction": "Say hi", "output": "hi", "system": "", "history": None}, HI),
        ({"instruction": "Say hi", "output": "hi", "system": " \n"}, HI),
        ({"conversations": [{"from": "system", "value": " "}, {"from": "human", "value": "Say hi"},
                            {"from": "gpt", "value": "hi"}]}, HI),
        ({"messages": [{"role": "system", "content": None}, {"role": "user", "content": "Say hi"},
                       {"role": "assistant", "content": "hi"}]}, HI),
        ({"instruction": "Say hi", "output": "hi", "system": "s", "history": [["a", "b"]]},
         [("system", "s"), ("user", "a"), ("assistant", "b"), *HI]),
        ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "Say hi"}]},
                       {"role": "assistant", "content": [{"type": None, "text": "hi"}]}]}, HI),
    ],
)  # fmt: skip
def test_other_formats_are_the_same_conversations(row: dict, turns: list) -> None:
    read, text_bytes, _ = read_item(Item(row), chat=True)
    assert [turn[:2] for turn in read] == turns
    assert text_bytes == len("".join(text for _, text in turns).encode())


@pytest.mark.parametrize("tokenizer", [Tokenizer(256), UNICODE], ids=["bytes", "unicode"])
def test_turns_of_weight_zero_are_context_only(tokenizer: Tokenizer) -> None:
    weights = [None, 0, 1, "0"]  # a column of a table may have strings
    messages = [{"role": "user", "content": "q"}]
    messages += [
        {"role": "assistant", "content": f"a{n}"} | ({} if weight is None else {"weight": weight})
        for n, weight in enumerate(weights)
    ]
    ids = encode_turns(tokenizer, read_chat({"messages": messages}))
    ids = np.append(ids, tokenizer.end_of_text).astype(tokenizer.dtype)
    learned = ids[response_mask(tokenizer, ids)].tolist()
    assert tokenizer.decode(learned) == "a0<|endofturn|>a2<|endofturn|>"
    assert all(f"a{n}" in tokenizer.decode(ids.tolist()) for n in range(4))
    with pytest.raises(LeftOut, match="no_answer"):
        read_chat({"messages": messages[:1] + messages[2:3]})


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"prompt": "", "response": "a"}, "empty"),
        ({"prompt": "a", "response": " \n"}, "empty"),
        ({"prompt": "a", "response": None}, "empty"),
        ({"messages": []}, "empty"),
        ({"messages": [{"role": "user", "content": "anyone?"}]}, "no_answer"),
        ({"prompt": "a", "response": "\0"}, "binary"),
        ({"prompt": "\ud800", "response": "a"}, "surrogate"),
        ({"prompt": 1, "response": "a"}, "not_text"),
        ({"messages": "hello"}, "not_chat"),
        ({"messages": None}, "not_chat"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "text": "a"}]}, "not_chat"),
        ({"messages": [{"from": "user", "value": "a"}]}, "no_answer"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not_only_text"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "not_only_text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "function_call": {"name": "f"}}]},
            "not_only_text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "text": "a cat"}]}]},
            "not_only_text",
        ),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "not_text"),
        ({"instruction": "a", "output": "c", "history": [["b"]]}, "not_chat"),
        ({"instruction": "a", "output": "c", "history": 5}, "not_chat"),
        ({"instruction": "a", "output": "c", "system": ["b"]}, "not_text"),
    ],
)
def test_rows_that_teach_nothing_are_left_out_by_reason(row: dict, outcome: str) -> None:
    with pytest.raises(LeftOut, match=f"^{outcome}$"):
        read_chat(row)


def chats_of(folder: Path) -> list[str]:
    data = DataSet(folder)
    assert data.chat
    return data.tokenizer.decode(np.concatenate(data.train.shards)).split("<|endoftext|>")[:-1]


def test_every_kind_of_source_prepares_the_same_conversations(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}?", "response": f"{n}!"} for n in range(40)]
    pairs[7]["response"] = ""
    roles = {"prompt": "user", "response": "assistant"}
    rows = [
        {"messages": [{"role": roles[key], "content": text} for key, text in pair.items()]}
        for pair in pairs
    ]
    (tmp_path / "hub").mkdir()
    write_json_lines(tmp_path / "hub" / "train.jsonl", rows)
    write_parquet(tmp_path / "t.parquet", [row["messages"] for row in rows], column="messages")
    made = {
        "pairs": {"files": write_json_lines(tmp_path / "a.jsonl", pairs)},
        "table": {"files": f"{tmp_path}/t.parquet"},
        "hub": {"source": "hub", "hub": f"{tmp_path}/hub"},
    }
    for name, settings in made.items():
        wanted = prepare_config(tmp_path, dataset=name, chat=True, val_fraction=0.0, **settings)
        folder = prepare(wanted)
        assert chats_of(folder) == [
            f"<|user|>{n}?<|endofturn|><|assistant|>{n}!<|endofturn|>" for n in range(40) if n != 7
        ]
        meta = json.loads((folder / "meta.json").read_text())
        assert meta["skipped"]["empty"] == 1
        assert meta["splits"]["train"]["bytes"] == sum(2 * len(f"{n}?") for n in range(40) if n - 7)


def test_conversations_without_their_columns_are_refused(tmp_path: Path) -> None:
    files = write_json_lines(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 1: no conversations \(expected messages, or"
    ):
        prepare(prepare_config(tmp_path, files=files, chat=True))
    (tmp_path / "a.txt").write_text("no turns")
    with pytest.raises(UserError, match=r"a\.txt is a text and holds no conversations"):
        prepare(prepare_config(tmp_path, files=f"{tmp_path}/a.txt", chat=True, dataset="b"))
    files = write_parquet(tmp_path / "b.parquet", [json.dumps(CHAT["messages"])], column="messages")
    with pytest.raises(UserError, match=r"column 'messages' holds string, not lists of turns"):
        prepare(prepare_config(tmp_path, files=files, chat=True, dataset="c"))
    assert PrepareConfig(chat=True).name == "docstrings"


def test_the_texts_in_a_folder_are_no_conversations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    (folder / "README.md").write_text("A data set's card.")
    files = write_json_lines(
        folder / "a.jsonl", [{"prompt": f"{n}?", "response": "!"} for n in "ab"]
    )
    inside = prepare(prepare_config(tmp_path, files=str(folder), chat=True, dataset="folder"))
    assert f"note: not read in {folder}: 1 .md\n" in capsys.readouterr().out
    alone = prepare(prepare_config(tmp_path, files=files, chat=True, dataset="file"))
    assert chats_of(inside) == chats_of(alone) != []


def test_a_system_column_of_a_table_is_read(tmp_path: Path) -> None:
    table = {"system": ["Be kind", None], "prompt": ["a", "b"], "response": ["c", "d"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    folder = prepare(
        prepare_config(tmp_path, files=f"{tmp_path}/t.parquet", chat=True, val_fraction=0.0)
    )
    assert [chat.startswith("<|system|>Be kind") for chat in chats_of(folder)] == [True, False]


def test_values_of_several_types_in_a_table_are_read(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PARTS}]
    kind = pa.struct({"role": pa.string(), "content": pa.json_()})  # as `datasets` writes them
    turns = pa.array([[turn | {"content": json.dumps(turn["content"])} for turn in said]])
    pq.write_table(pa.table({"messages": turns.cast(pa.list_(kind))}), tmp_path / "t.parquet")
    files = f"{tmp_path}/t.parquet"
    folder = prepare(prepare_config(tmp_path, files=files, chat=True, val_fraction=0.0))
    assert chats_of(folder) == ["<|user|>a<|endofturn|><|assistant|>Say hi<|endofturn|>"]


def test_docstrings_follow_their_signatures() -> None:
    rows = list(docstring_rows(json.__file__))
    dumps = next(row for row in rows if row["prompt"].startswith("def dumps(obj, *, skipkeys="))
    assert dumps["response"] == "Serialize ``obj`` to a JSON formatted ``str``."
    assert len(rows) == 4
    assert json.__file__ in corpus.stdlib_files()
