"""Models in EleutherAI's harness: real tasks on local files, checked against the decoder itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import letter_tokenizer

from sentinel.adapt.text.corpora import Document, Text
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.packages import gpt2_tokenizer_folder
from sentinel.formats.sources import LoadedModel, load
from sentinel.measure.perplexity import evaluate
from sentinel.models.tokenizer import TextTokenizer

lm_eval = pytest.importorskip("lm_eval")

CHOICES = [{"question": "a b c", "choices": ["d e", "f", "g h i"], "answer": 0}]
PAGES = [{"page": "a b c d e f g h i j k l m n o p " * 2}]
PROMPTS = [{"prompt": "a b c", "target": "d"}, {"prompt": "p", "target": "d"}]
TASKS = {
    "choice": (CHOICES, "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
               "doc_to_target: answer\nmetric_list:\n- metric: acc\n"),
    "pages": (PAGES, "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{page}}'\nmetric_list:\n"
              "- metric: word_perplexity\n"),
    "prompts": (PROMPTS, "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{target}}'\n"
                "generation_kwargs:\n  until: ['<end>']\n  max_gen_toks: 6\nmetric_list:\n- metric: exact_match\n"),
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder of tasks that need no download."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, (rows, text) in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / name}.jsonl\n"
        (folder / f"{name}.yaml").write_text(f"task: own_{name}\n{source}test_split: test\n{text}")
    return folder


def harness(model: str, tasks: Path, **options) -> dict[str, list]:
    """Responses of the harness by task."""
    from sentinel.measure.lm_eval_model import SentinelLM

    return responses(SentinelLM(model, **options), tasks)


def responses(model, tasks: Path, **options) -> dict[str, list]:
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"own_{name}" for name in TASKS],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        verbosity="ERROR",
        **options,
    )
    return {name: [sample["resps"] for sample in found["samples"][f"own_{name}"]] for name in TASKS}


def same_responses(found: dict[str, list], expected: dict[str, list], tolerance: float = 1e-4) -> None:
    """The same texts, and log-likelihoods within ``tolerance``."""
    assert found["prompts"] == expected["prompts"]
    for task in ("choice", "pages"):
        ours, theirs = [[float(np.ravel(r[0])[0]) for r in doc] for doc in found[task]], expected[task]
        assert np.ravel(ours) == pytest.approx([float(np.ravel(r[0])[0]) for doc in theirs for r in doc], rel=tolerance)


TOKENIZERS = {
    "begins every text": {"bos_token": "<begin>", "eos_token": "<end>"},
    "knows a begin": {"bos_token": "<begin>", "eos_token": "<end>"},
    "one token for both": {"bos_token": "<end>", "eos_token": "<end>"},
    "end only": {"eos_token": "<end>"},
}


def hugging_face_folder(folder: Path, kind: str, **generation) -> str:
    """A Hugging Face model of random weights with one of `TOKENIZERS` and a chat template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = letter_tokenizer().fast
    words.add_special_tokens(["<begin>", "<end>"])
    if kind == "begins every text":
        begin = ("<begin>", words.token_to_id("<begin>"))
        words.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=[begin])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, **TOKENIZERS[kind])
    fast.chat_template = "{% for m in messages %}p {{ m.content }} o {% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=18, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=0.4, bos_token_id=17, eos_token_id=0,
        )
    )  # fmt: skip
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_answers_are_those_of_the_hf_model(kind, chat, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM

    folder = hugging_face_folder(tmp_path / "model", kind)
    theirs = HFLM(folder, device="cpu", dtype="float32", batch_size=2)
    expected = responses(theirs, tasks, apply_chat_template=chat)
    loaded = load(folder)
    save_checkpoint(loaded.decoder, tmp_path / "ours", loaded.tokenizer, loaded.record)
    for place in (folder, str(tmp_path / "ours")):
        same_responses(responses(sentinel_lm(place, batch_size=2), tasks, apply_chat_template=chat), expected)
        assert sentinel_lm(place).prefix_token_id == theirs.prefix_token_id
        assert sentinel_lm(place).tokenizer_name == place.replace("/", "__")
        assert sentinel_lm(place).chat_template() == theirs.chat_template()


def sentinel_lm(model: str, **options):
    from sentinel.measure.lm_eval_model import SentinelLM

    return SentinelLM(model, **options)


@pytest.mark.parametrize("options", [{"add_bos_token": True}, {"prefix_token_id": 3}, {"max_length": 20}])
def test_options_of_the_tokenizer_are_those_of_the_hf_model(options, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM

    folder = hugging_face_folder(tmp_path / "model", "knows a begin", repetition_penalty=1.5)
    expected = responses(HFLM(folder, device="cpu", dtype="float32", **options), tasks)
    same_responses(harness(folder, tasks, **options), expected)


def test_every_level_gives_the_same_answers(tasks, tmp_path):
    from sentinel.infer.pack import pack
    from sentinel.infer.quantised import save_quantised

    folder = hugging_face_folder(tmp_path / "model", "begins every text", repetition_penalty=1.2)
    expected = harness(folder, tasks)
    for level in (0, 1, 2):
        same_responses(harness(folder, tasks, level=level, batch_size=2), expected)
    found = harness(folder, tasks, level="3", precision="int8")
    assert float(found["pages"][0][0][0]) == pytest.approx(float(expected["pages"][0][0][0]), rel=0.05)
    loaded = load(folder)
    save_quantised(pack(loaded.decoder, "int8"), {}, tmp_path / "packed", loaded.tokenizer, loaded.record)
    same_responses(harness(str(tmp_path / "packed"), tasks), found)


def log_probabilities(loaded: LoadedModel, text: str, given: int) -> float:
    """Log-probability of a text's tokens after the first ``given``, by the decoder."""
    ids = loaded.require_tokenizer().encode(text)
    with torch.no_grad():
        logits = loaded.decoder(torch.tensor([ids])).log_softmax(-1)[0]
    return sum(logits[i - 1, ids[i]].item() for i in range(given, len(ids)))


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_harness_and_decoder_agree(name, worded, elastic, tasks):
    model = worded if name == "dense" else str(Path(elastic).parent / "pruned")
    loaded = load(model)
    if name == "pruned":
        assert len({layer.n_head for layer in loaded.spec.layers}) > 1
    found = harness(model, tasks, batch_size=2)
    row = CHOICES[0]
    for choice, ((said, _),) in zip(row["choices"], found["choice"][0], strict=True):
        assert float(said) == pytest.approx(log_probabilities(loaded, f"{row['question']} {choice}", 3), rel=1e-4)
    text = f"? {PAGES[0]['page']}"  # unknown is <end>, after which the harness predicts the first token too
    said = float(found["pages"][0][0][0])
    assert said == pytest.approx(log_probabilities(loaded, text, 1), rel=1e-4)
    own = evaluate(loaded.decoder, loaded.require_tokenizer(), [Text("t", (Document("d", text),))], context=64)
    assert said == pytest.approx(-own.nll * own.tokens, rel=1e-4)
    for row, (said,) in zip(PROMPTS, found["prompts"], strict=True):  # one batch, of unequal lengths
        ids = loaded.require_tokenizer().encode(row["prompt"])
        new = []
        for _ in range(6):
            with torch.no_grad():
                new.append(int(loaded.decoder(torch.tensor([ids + new]))[0, -1].argmax()))
        expected = loaded.require_tokenizer().decode(new[: new.index(0)] if 0 in new else new)
        assert said[0].split() == expected.split()


def test_stored_level_is_the_pruned_model(elastic, tasks):
    pruned = harness(str(Path(elastic).parent / "pruned"), tasks)
    level = harness(elastic, tasks, heads=0.5, neurons=0.5)
    assert level["prompts"] == pruned["prompts"]
    for a, b in zip(level["choice"][0], pruned["choice"][0], strict=True):
        assert float(a[0][0]) == pytest.approx(float(b[0][0]), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name is empty"),
        ({"pretrained": "/nowhere"}, "does not exist"),
        ({"pretrained": "WORDS", "heads": 0.5}, "stores no widths"),
        ({"pretrained": "ELASTIC", "heads": 0.3}, "stored are"),
        ({"pretrained": "ELASTIC", "heads": "half"}, "must be a ratio"),
        ({"pretrained": "WORDS", "head": 0.5}, "'head' is not known"),
        ({"pretrained": "WORDS", "peft": "adapter"}, "'peft' is not known"),
        ({"pretrained": "WORDS", "device": "abacus"}, "abacus"),
        ({"pretrained": "WORDS", "level": "three"}, "level must be a whole number"),
        ({"pretrained": "WORDS", "level": 4}, "level 4 does not exist"),
        ({"pretrained": "WORDS", "level": 1, "precision": "int8"}, "level 1 runs in fp32"),
        ({"pretrained": "WORDS", "level": 3, "batch_size": "auto"}, "batch_size=auto is not supported"),
    ],
)
def test_bad_model_arguments_are_named(options, said, worded, elastic):
    from sentinel.measure.lm_eval_model import SentinelLM

    places = {"WORDS": worded, "ELASTIC": elastic}
    with pytest.raises(InputError, match=said):
        SentinelLM(**{name: places.get(value, value) for name, value in options.items()})


def test_command_line(worded, tasks, tmp_path):
    command = [sys.executable, "-c", "from sentinel.commands.lm_eval import main; main()", "run", "--model", "sentinel"]
    given = [
        "--tasks",
        "own_choice,own_pages,own_prompts",
        "--include_path",
        str(tasks),
        "--output_path",
        str(tmp_path),
    ]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [*command, "--model_args", f"pretrained={worded}", *given],
        capture_output=True,
        text=True,
        check=False,
        env=offline,
    )
    assert done.returncode == 0, done.stderr
    assert "own_pages" in done.stdout and "word_perplexity" in done.stdout
    (results,) = tmp_path.rglob("results_*.json")
    assert set(json.loads(results.read_text())["results"]) == {"own_choice", "own_pages", "own_prompts"}


def test_the_command_line_gives_the_scores_of_the_hf_model(tasks, tmp_path, monkeypatch):
    """All kinds of requests at level 1, and near them at level 3."""
    from sentinel.commands.lm_eval import main

    folder = hugging_face_folder(tmp_path / "model", "begins every text")
    given = ["--tasks", "own_choice,own_pages,own_prompts", "--include_path", str(tasks), "--device", "cpu"]

    def scores(kind: str, more: str) -> dict[str, dict[str, float]]:
        place = tmp_path / f"{kind}{more}"
        told = ["--model", kind, "--model_args", f"pretrained={folder}{more}", "--output_path", str(place)]
        monkeypatch.setattr(sys, "argv", ["sentinel-lm-eval", "run", *told, *given])
        main()
        (results,) = place.rglob("results_*.json")
        found = json.loads(results.read_text())["results"]
        return {task: {k: v for k, v in row.items() if isinstance(v, float)} for task, row in found.items()}

    expected = scores("hf", ",dtype=float32")
    assert expected["own_pages"]["word_perplexity,none"] > 1
    ours = scores("sentinel", "")
    for task, row in expected.items():
        assert ours[task] == pytest.approx(row, rel=1e-4)
    quantised = scores("sentinel", ",level=3")
    assert quantised.keys() == expected.keys()
    name = "word_perplexity,none"
    assert quantised["own_pages"][name] == pytest.approx(expected["own_pages"][name], rel=0.2)


def test_a_bad_model_on_the_command_line_is_one_sentence(tasks, monkeypatch, capsys):
    from sentinel.commands.lm_eval import main

    given = ["--model_args", "pretrained=/nowhere", "--tasks", "own_choice", "--include_path", str(tasks)]
    monkeypatch.setattr(sys, "argv", ["sentinel-lm-eval", "run", "--model", "sentinel", *given])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "sentinel: /nowhere does not exist"


def test_missing_harness_is_said(monkeypatch, capsys):
    from sentinel.commands.lm_eval import main

    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "sentinel-ai[eval]" in capsys.readouterr().err


@pytest.mark.real_model
def test_gpt2_tokenizer_files_are_taken():
    from transformers import AutoTokenizer

    from sentinel.measure.lm_eval_model import _hugging_face

    tokenizer = TextTokenizer.from_folder(gpt2_tokenizer_folder())
    assert tokenizer is not None
    fast = AutoTokenizer.from_pretrained(_hugging_face(tokenizer))
    assert fast("Hello world").input_ids == tokenizer.encode("Hello world")
    assert fast.eos_token_id == tokenizer.eos_ids[0]
