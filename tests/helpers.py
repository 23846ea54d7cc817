"""Shared steps of the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split, Whitespace

from sentinel.adapt.pruning.plan import RemovalOrder
from sentinel.adapt.pruning.scores import Scores, removal_order
from sentinel.adapt.text.corpora import Document, Text
from sentinel.cli import main
from sentinel.infer.engine import Engine, Memory
from sentinel.models.decoder import Decoder
from sentinel.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from sentinel.models.tokenizer import TextTokenizer

LETTERS = "abcdefghijklmnop"
CORPUS = ["The quick brown fox jumps over the lazy dog. don't stop, it's 12345", "hello hello world user\n"]
END = "<|endoftext|>"


def letter_tokenizer() -> TextTokenizer:
    """A tokenizer of 17 words: an end, and `LETTERS`."""
    tokenizer = Tokenizer(WordLevel({"<end>": 0, **{c: i + 1 for i, c in enumerate(LETTERS)}}, "<end>"))
    tokenizer.pre_tokenizer = Whitespace()
    return TextTokenizer(tokenizer, (0,))


def character_tokenizer(vocab_size: int = 97) -> TextTokenizer:
    """A tokenizer of one printable ASCII character per token, without an end token."""
    tokenizer = Tokenizer(WordLevel({chr(c): c % vocab_size for c in range(32, 127)}, " "))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    return TextTokenizer(tokenizer, ())


def byte_tokenizer() -> TextTokenizer:
    """A byte-level tokenizer: 256 bytes and an end token, which the ids begin with."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({"<end>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<end>"])
    return TextTokenizer(tokenizer, (0,))


def byte_level(**options) -> Tokenizer:
    """GPT-2's kind of tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """Llama's kind of tokenizer as of transformers 4: sentencepiece BPE with bytes for what it lacks, BOS in front."""
    alphabet = ["▁", *"Tthequickbrownfxjmpsvlazydg.'12345"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *alphabet, "▁t", "he"]
    vocabulary, joined = {p: i for i, p in enumerate(pieces)}, [("▁", "t"), ("h", "e")]
    tokenizer = Tokenizer(models.BPE(vocabulary, joined, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def word_tokenizer(*vocabulary: str, special: str | None = None) -> Tokenizer:
    """A tokenizer of words, "?" for all others; it drops the spaces between."""
    names = ["?", *([special] if special else []), *vocabulary]
    made = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, "?"))
    made.pre_tokenizer = Whitespace()
    if special:
        made.add_special_tokens([special])
    return made


def text_of(*documents: str) -> Text:
    """A text of these documents, named by their numbers."""
    return Text("t", tuple(Document(str(number), content) for number, content in enumerate(documents)))


ATTENTION_FIELDS = {f.name for f in dataclasses.fields(AttentionSpec)}


def layer_of(n_head: int, n_kv_head: int, head_dim: int, neurons: int, **features: Any) -> LayerSpec:
    """A layer of those sizes; ``features`` are fields of its attention or of its MLP."""
    attention = {name: value for name, value in features.items() if name in ATTENTION_FIELDS}
    mlp = {"activation": "silu", **{name: v for name, v in features.items() if name not in ATTENTION_FIELDS}}
    return LayerSpec(AttentionSpec(n_head, n_kv_head, head_dim, **attention), MlpSpec(neurons, **mlp))


def resized(layer: LayerSpec, n_head: int, n_kv_head: int, head_dim: int, neurons: int) -> LayerSpec:
    """The same layer in other sizes."""
    attention = dataclasses.replace(layer.attention, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim)
    return LayerSpec(attention, dataclasses.replace(layer.mlp, intermediate_size=neurons))


def with_layers(spec: ModelSpec, *sizes: tuple[int, int, int, int], **features: Any) -> ModelSpec:
    """The same model with layers of those sizes, by default its own; ``features`` are fields of attention or MLP."""
    layers = [resized(spec.layers[0], *size) for size in sizes] or list(spec.layers)
    attention = {name: value for name, value in features.items() if name in ATTENTION_FIELDS}
    mlp = {name: value for name, value in features.items() if name not in ATTENTION_FIELDS}
    changed = (
        LayerSpec(dataclasses.replace(layer.attention, **attention), dataclasses.replace(layer.mlp, **mlp))
        for layer in layers
    )
    return dataclasses.replace(spec, layers=tuple(changed))


def filled_decoder(spec: ModelSpec, seed: int = 0) -> Decoder:
    """A decoder in which every parameter matters: nothing is 0 or 1, gates and biases included."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder.empty(spec).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in decoder.parameters():
            scale = 0.2 if parameter.dim() > 1 else 0.5
            parameter.normal_(0.0, scale, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.7)
    return decoder.eval()


class ToyEngine(Engine):
    """An engine that holds nothing but tokens: the next one after ``tokens`` is ``answer(tokens)``."""

    def __init__(self, answer: Callable[[list[int]], int], spec: ModelSpec, **options: Any) -> None:
        super().__init__(spec, **{"name": "toy", "level": 1, "precision": "fp32", **options})
        self.answer = answer
        self.held: dict[int, list[int]] = {}  # by slot

    def _make_room(self, n_slot, n_position):
        self.held = {slot: self.held.get(slot, []) for slot in range(n_slot)}

    def _start(self, sequences, prompts):
        return np.concatenate([self._read(s, prompt, 1) for s, prompt in zip(sequences, prompts, strict=True)])

    def _step(self, sequences, tokens):
        return np.concatenate([self._read(s, [token], 1) for s, token in zip(sequences, tokens, strict=True)])

    def _several(self, sequence, tokens, last):
        return self._read(sequence, tokens, last)

    def _states(self, sequence, tokens, last):
        return self._read(sequence, tokens, last)

    def _copy(self, source, target):
        self.held[target.slot] = list(self.held[source.slot])

    def _read(self, sequence, tokens, last):
        said = self.held[sequence.slot] = [*self.held[sequence.slot][: sequence.length], *tokens]
        ends = range(len(said) - last + 1, len(said) + 1)
        return np.eye(self.spec.vocab_size, dtype=np.float32)[[self.answer(said[:end]) for end in ends]]

    def weight_bytes_per_token(self):
        return 1000

    @property
    def kv_bytes(self):
        return 4

    def memory(self):
        return Memory(1000, 0, None)


def some_tokens(spec: ModelSpec, batch: int = 2, length: int = 17, seed: int = 1) -> torch.Tensor:
    """Seeded token ids [batch, length]."""
    return torch.randint(0, spec.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, over the largest magnitude where that exceeds 1."""
    return ((a - b).abs().max() / max(1.0, b.abs().max().item())).item()


def some_order(spec: ModelSpec, seed: int = 0, **options: Any) -> RemovalOrder:
    """The order of removal by seeded random scores."""
    rng = np.random.default_rng(seed)
    scores = Scores(
        "random",
        tuple(rng.random(layer.n_kv_head) for layer in spec.layers),
        tuple(rng.random(layer.intermediate_size) for layer in spec.layers),
    )
    return removal_order(spec, scores, **options)


def refused(capsys, *arguments: object) -> str:
    """Run a command that must end with exit code 2 and one sentence on stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert captured.err.startswith("sentinel: ") and captured.err.count("\n") == 1, captured.err
    return captured.err
