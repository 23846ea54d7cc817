"""`sentinel chat`: answers are those of the whole history, commands do what they say, Ctrl-C stops an answer alone."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS
from helpers import character_tokenizer, filled_decoder

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.infer.conversation import Conversation
from sentinel.infer.generate import generate_text
from sentinel.infer.opening import make_engine
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer

HANG = 300  # seconds after which a test would wait for ever
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant: "


def tokenizer() -> TextTokenizer:
    return TextTokenizer(character_tokenizer().fast, (), settings={"chat_template": TEMPLATE})


def decoder(context: int, seed: int = 0):
    config = {**CONFIGS["llama-grouped"], "max_position_embeddings": context}
    return filled_decoder(family_of("llama").spec_from_config(config), seed)


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    """A tiny elastic model with a chat template and a stored width of half its heads."""
    folder = tmp_path_factory.mktemp("models") / "talker"
    dense = expand_kv(decoder(8192))
    pruner = Pruner(dense, PruningSettings("random", compensate=False, seed=4), None)
    order = pruner.order(0.5, 0.5)
    plan = order.plan(0.5, 0.5)
    save_checkpoint(make_elastic(dense, order, [plan], pruner.apply([plan])), folder, tokenizer(), Record())
    return folder


def talk(monkeypatch, capsys, folder: Path, *lines: str, more: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Lines on stdout, and stderr."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert main(["chat", str(folder), "--max-new-tokens", "8", *more]) == 0
    found = capsys.readouterr()
    return found.out.splitlines(), found.err


@pytest.mark.parametrize("level", [1, 2])
def test_answers_are_those_of_the_whole_history_read_at_once(level):
    engine, words = make_engine(decoder(512), level), tokenizer()
    chat = Conversation(engine, words, "be brief")
    chat.max_new_tokens = 10
    for text in ("hello", "and now?", "well"):
        prompt = words.apply_chat([*chat.messages, {"role": "user", "content": text}])
        assert "".join(chat.reply(text)) == generate_text(engine, words, prompt, 10)
        assert chat.turn.n_prompt == len(prompt)
    assert chat.turn.n_read < len(prompt) // 2  # most of it was held
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 3]


def test_a_full_context_leaves_out_the_oldest_and_a_text_beyond_it_is_refused():
    chat = Conversation(make_engine(decoder(100), 2), tokenizer(), "s")
    chat.max_new_tokens = 5
    with pytest.raises(InputError, match="beyond the context of 100"):
        list(chat.reply("a" * 100))
    assert len(chat.messages) == 1
    for text in ("b" * 20, "c" * 20, "d" * 20):
        list(chat.reply(text))
    assert chat.turn.left_out and chat.messages[0]["content"] == "s" and chat.messages[-2]["content"] == "d" * 20


def test_an_answer_may_outgrow_the_room_that_its_sequence_has(monkeypatch):
    from sentinel.infer import conversation

    engine, words = make_engine(decoder(512), 2), tokenizer()
    monkeypatch.setattr(conversation, "ROOM", 8)
    chat = Conversation(engine, words)
    chat.max_new_tokens = 100
    expected = generate_text(engine, words, words.apply_chat([{"role": "user", "content": "hi"}]), 100)
    assert "".join(chat.reply("hi")) == expected


def test_commands_do_what_they_say(talker, tmp_path, monkeypatch, capsys):
    file = tmp_path / "chat.json"
    out, told = talk(
        monkeypatch, capsys, talker, "hello", "/stats", f"/save {file}", "/reset", "hello", f"/load {file}", "again",
        "/set max_new_tokens 3", "/set temperature 0.7", "/reset", "hello", "/stats", "/help", "/quit", "never",
        more=("--level", "2"),
    )  # fmt: skip
    assert out[0] == out[2] and out[0] != out[3]
    assert out[1].startswith("8 tokens, TTFT ") and out[5].startswith("3 tokens, TTFT ")
    assert "/heads R" in "\n".join(out[6:]) and not told.count("never")
    saved = json.loads(file.read_text())["messages"]
    assert saved == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": out[0]}]


def test_another_width_is_that_of_generate(talker, monkeypatch, capsys):
    level = ("--level", "2")
    whole, _ = talk(monkeypatch, capsys, talker, "hello", more=level)
    narrow, _ = talk(monkeypatch, capsys, talker, "hello", more=(*level, "--heads", "0.5", "--neurons", "0.5"))
    switched, told = talk(
        monkeypatch,
        capsys,
        talker,
        "hello",
        "/reset",
        "/heads 0.5/0.5",
        "hello",
        "/reset",
        "/heads 0",
        "hello",
        more=level,
    )
    assert switched == [*whole, *narrow, *whole] and whole != narrow
    assert "without 50% of heads and 50% of neurons" in told


def test_mistakes_are_said_and_the_chat_goes_on(talker, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.json").write_text('{"a": 1}')
    mistakes = [
        ("/nothing", "there is no /nothing"),
        ("/set colour 3", "there is no colour to set"),
        ("/set temperature hot", "temperature must be a number"),
        ("/set temperature -1", "temperature must be at least 0"),
        ("/set max_new_tokens 0", "max_new_tokens must be at least 1"),
        ("/load", "/load needs the name of a file"),
        (f"/load {tmp_path / 'none.json'}", "is no saved chat"),
        (f"/save {tmp_path / 'mine.json'}", "is no saved chat; name another file"),
        ("/heads 0.9", "0.9"),
        ("/heads many", "/heads takes a ratio"),
        ("/stats", "nothing was answered yet"),
    ]
    out, told = talk(monkeypatch, capsys, talker, *(line for line, _ in mistakes), "hello", more=("--level", "2"))
    for _, expected in mistakes:
        assert expected in told
    assert len(out) == 1 and out[0] and (tmp_path / "mine.json").read_text() == '{"a": 1}'


def test_a_model_without_a_template_is_refused(worded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    assert main(["chat", worded]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_program(talker):
    command = [sys.executable, "-m", "sentinel", "chat", str(talker), "--level", "1", "--max-new-tokens", "8000"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    try:
        for _ in range(2):
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            assert process.stdout.read(3)
            process.send_signal(signal.SIGINT)
            process.stdout.readline()
        out, told = process.communicate(b"/stats\n/quit\n", timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 0 and told.count(b"stopped; what was said is kept") == 2, told
    found = re.match(rb"(\d+) tokens, TTFT ", out)
    assert found and int(found.group(1)) < 8000
