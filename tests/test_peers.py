"""Other engines on the same weights: which are run, how their rows are made, and that they compute the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, unequal_spec
from helpers import filled_decoder, with_layers
from synthetic_results import PLACE

from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import LoadedModel
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.measure.method import random_prompts
from sentinel.measure.peers import PEERS, PeerSettings, Runner, is_installed
from sentinel.measure.results import ResultSet
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.peers import compare
from sentinel.measure.suites.request import Request, SuiteSettings
from sentinel.models.families import family_of
from sentinel.models.features import ALL
from sentinel.models.record import Pruned, Record
from sentinel.progress import console
from sentinel.report.findings import beside_peers
from sentinel.report.tables import tables

# Sizes that every peer takes: head_dim a multiple of 16, n_embd one of the number of heads.
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
SHAPES = {
    "gpt2": {**CONFIGS["gpt2"], "n_embd": 64},
    "llama": {**CONFIGS["llama-grouped"], **SIZES},
    "llama-linear": {**CONFIGS["llama-rope-linear"], **SIZES},
    "llama-biases-tied": {**CONFIGS["llama-multi-query-biases"], **SIZES, "tie_word_embeddings": True},
}


def decoder_of(shape: str):
    config = SHAPES[shape]
    return filled_decoder(family_of(config["model_type"]).spec_from_config(config))


class Echo(Runner):
    """Answers with our own tokens, and notes that it was called."""

    def __init__(self, peer: TinyPeer, decoder, variant: str, settings: PeerSettings) -> None:
        super().__init__(f"{peer.NAME} {variant}", decoder.spec, 1000)
        self.peer, self.engine, self.settings = peer, make_engine(decoder, 2, threads=1), settings
        self.folder = peer.folder

    def generate(self, prompts, new_tokens, timings):
        self.peer.calls.append(self.name)
        steps = list(generate_tokens(self.engine, prompts, new_tokens, timings=timings))
        shift = 1 if self.name.endswith("wrong") else 0
        return [[token + shift for token in row] for row in zip(*steps, strict=True)]

    def close(self):
        assert self.folder is not None and self.folder.exists()  # files outlive their runners
        self.peer.calls.append("closed")


@dataclasses.dataclass
class TinyPeer:
    """A peer that needs a module which is always there."""

    NAME: str = "tiny"
    MODULES: tuple[str, ...] = ("json",)
    REQUIREMENTS: tuple[str, ...] = ("tiny-engine",)
    VARIANTS: dict[str, str] = dataclasses.field(default_factory=lambda: {"exact": "fp32", "wrong": "int8"})
    MAX_BATCH: int = 2
    SUPPORTS: frozenset[str] = ALL
    calls: list[str] = dataclasses.field(default_factory=list)
    folder: Path | None = None

    def prepare(self, decoder, folder: Path, variant: str, settings: PeerSettings) -> Runner:
        if variant == "odd":
            raise InputError("odd weights do not exist")
        self.folder = folder
        assert settings.batch >= 1 and settings.room == 8
        return Echo(self, decoder, variant, settings)


def request_for(decoder, **settings) -> Request:
    loaded = LoadedModel("model", decoder, None, Record(weights="random"))
    chosen = SuiteSettings(**{"prompt_tokens": (5,), "new_tokens": 3, "rounds": 2, **settings})
    return Request(loaded, "model", 0, Engines(loaded), chosen, frozenset())


def test_rows_of_all_engines_in_turn():
    peer = TinyPeer()
    rows = compare(request_for(decoder_of("gpt2"), precision=("int8", "int4")), [peer])
    names = ["hf-generate", "level 2", "level 3 int8", "level 3 int4", "tiny exact", "tiny wrong"]
    assert [row.engine for row in rows] == names
    assert [row.level for row in rows] == [None, 2, 3, 3, None, None]
    assert [row.precision for row in rows] == ["fp32", "fp32", "int8", "int4", "fp32", "int8"]
    assert all(row.suite == "peers" and row.speedup_over == "hf-generate" and len(row.samples) == 2 for row in rows)
    assert all(row.tpot_ms and row.mbu and row.speedup for row in rows)
    exact, wrong = rows[-2:]
    assert exact.same_tokens_as_reference and rows[1].same_tokens_as_reference
    assert wrong.same_tokens_as_reference is False
    assert exact.weight_bytes_per_token == 1000
    assert peer.calls == ["tiny exact", "tiny wrong"] * 3 + ["closed"] * 2  # a warm-up and two rounds
    assert peer.folder is not None and not peer.folder.exists()


def test_every_length_of_prompt_at_every_batch():
    peer = TinyPeer(VARIANTS={"exact": "fp32"})
    rows = compare(request_for(decoder_of("gpt2"), prompt_tokens=(5, 2), batches=(1, 2), precision=("int8",)), [peer])
    engines = ["hf-generate", "level 2", "level 3 int8", "tiny exact"]
    kinds = [(batch, length) for batch in (1, 2) for length in (5, 2)]
    assert [(r.batch, r.prompt_tokens, r.engine) for r in rows] == [(*kind, e) for kind in kinds for e in engines]
    assert all(r.same_tokens_as_reference for r in rows if r.precision == "fp32")
    said = beside_peers(rows)
    assert all(f"{batch} x {length} tokens: level 2 takes" in said for batch, length in kinds)
    ours, theirs = (next(r for r in rows if r.engine == e) for e in ("level 2", "tiny exact"))
    assert f"{ours.ttft_ms / theirs.ttft_ms:.2f} of the TTFT of tiny exact" in said


def test_what_is_left_out_is_named(capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", False)
    missing = TinyPeer(NAME="absent", MODULES=("no_such_module",), REQUIREMENTS=("absent-engine", "helper"))
    narrow = TinyPeer(NAME="narrow", MAX_BATCH=1)
    partly = TinyPeer(NAME="partly", VARIANTS={"exact": "fp32", "odd": "int4"})
    rows = compare(request_for(decoder_of("gpt2"), batches=(2,), precision=("int8",)), [missing, narrow, partly])
    assert [row.engine for row in rows][3:] == ["partly exact"]
    said = capsys.readouterr().err
    assert "absent is not installed; pip install absent-engine helper\n" in said
    assert "narrow is left out: it takes 1 sequences" in said
    assert "partly odd is left out: odd weights do not exist" in said
    plain = TinyPeer(NAME="plain", SUPPORTS=ALL - {"learned positions"})
    with pytest.raises(InputError, match="can run this model"):
        compare(request_for(decoder_of("gpt2")), [plain])
    assert (
        "plain is left out: plain can't do this model: it does not support learned positions" in capsys.readouterr().err
    )
    assert plain.folder is None  # nothing was written
    with pytest.raises(InputError, match="install some"):
        compare(request_for(decoder_of("gpt2")), [missing])
    with pytest.raises(InputError, match="can run this model"):
        compare(request_for(decoder_of("gpt2")), [TinyPeer(VARIANTS={"odd": "int4"})])


def test_a_model_whose_layers_differ_is_told_against_level_2(capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", False)
    rows = compare(request_for(filled_decoder(unequal_spec()), precision=("int8",)), [TinyPeer()])
    assert [row.engine for row in rows] == ["level 2", "level 3 int8", "tiny exact", "tiny wrong"]
    assert all(row.speedup_over == "level 2" for row in rows)
    assert [row.same_tokens_as_reference for row in rows[2:]] == [True, False]
    said = capsys.readouterr().err
    assert (
        "Hugging Face is left out of model, and level 2 is the reference: Hugging Face's own class can't do this model"
        in said
    )


def pruned_request(decoder, source: str, **settings) -> Request:
    request = request_for(decoder, **settings)
    step = Pruned(source=source, criterion="random", heads=(0.5,), neurons=(0.5,))
    record = dataclasses.replace(request.loaded.record, steps=(step,))
    return dataclasses.replace(request, loaded=dataclasses.replace(request.loaded, record=record), random_weights=None)


def test_a_pruned_model_is_measured_beside_the_unpruned_one(tmp_path):
    dense = unequal_spec()
    smaller = with_layers(dense, (1, 1, 8, 8), (2, 2, 8, 9), (1, 1, 8, 5), (2, 2, 8, 7))
    save_checkpoint(filled_decoder(dense), tmp_path / "dense")
    peer = TinyPeer(VARIANTS={"exact": "fp32"})
    request = pruned_request(filled_decoder(smaller), str(tmp_path / "dense"), rounds=3)
    rows = compare(request, [peer])
    assert [(r.engine, r.configuration, r.model) for r in rows] == [
        (engine, *model)
        for engine in ("level 2", "level 3 int8", "tiny exact")
        for model in (("pruned", "model"), ("not pruned", "dense"))
    ]
    assert [r.is_reference for r in rows] == [True, *[False] * 5]
    assert all(r.same_tokens_as_reference for r in rows if r.precision == "fp32")
    pruned, unpruned = rows[:2]
    removed = 1 - pruned.weight_bytes_per_token / unpruned.weight_bytes_per_token
    saved = 1 - pruned.tpot_ms / unpruned.tpot_ms
    assert pruned.saved_over_removed == pytest.approx(saved / removed)
    assert pruned.saved_over_removed_low <= pruned.saved_over_removed <= pruned.saved_over_removed_high
    assert unpruned.saved_over_removed is None
    assert rows[4].saved_over_removed is None  # the tiny engine reads as many bytes of either
    (table,) = tables(rows)
    column = table.columns.index("time saved over share of bytes removed")
    assert table.rows[0][column].startswith(f"{pruned.saved_over_removed:.2f} (") and table.rows[1][column] == "–"
    assert "1 is all that the bytes promise" in table.note
    ResultSet(PLACE, rows).write(tmp_path / "rows.json")
    again = ResultSet.read(tmp_path / "rows.json").results
    assert again[0].saved_over_removed == pruned.saved_over_removed


def test_an_unpruned_model_that_can_not_be_had_is_told_or_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", False)
    decoder, peer = filled_decoder(unequal_spec()), TinyPeer(VARIANTS={"exact": "fp32"})
    gone = str(tmp_path / "gone")
    rows = compare(pruned_request(decoder, gone), [peer])
    assert [row.configuration for row in rows] == [None] * 3
    assert "name it by --unpruned MODEL" in capsys.readouterr().err
    with pytest.raises(InputError, match="gone does not exist"):
        compare(pruned_request(decoder, gone, unpruned=gone), [peer])
    save_checkpoint(filled_decoder(dataclasses.replace(unequal_spec(), vocab_size=98)), tmp_path / "other")
    with pytest.raises(InputError, match="name what it was made from"):
        compare(pruned_request(decoder, gone, unpruned=str(tmp_path / "other")), [peer])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.NAME)
def test_an_installed_peer_gives_our_tokens_in_fp32(peer, shape, tmp_path):
    for module in peer.MODULES:
        pytest.importorskip(module)
    assert is_installed(peer)
    decoder = decoder_of(shape)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    batch = min(2, peer.MAX_BATCH)
    prompts, new = random_prompts(decoder.spec.vocab_size, batch, 9), 12
    steps = generate_tokens(make_engine(decoder, 2), prompts, new)
    expected = [list(row) for row in zip(*steps, strict=True)]
    exact = next(variant for variant, precision in peer.VARIANTS.items() if precision == "fp32")
    for variant in peer.VARIANTS:
        runner = peer.prepare(decoder, tmp_path, variant, PeerSettings(1, batch, 9 + new))
        for _ in range(2):  # a second generation starts anew
            timings = Timings()
            tokens = runner.generate(prompts, new, timings)
            assert len(timings.stamps) == new and timings.stamps == sorted(timings.stamps)
            assert [len(row) for row in tokens] == [new] * batch
            if variant == exact:
                assert tokens == expected
        whole = decoder.spec.weight_bytes_per_token()
        if variant == exact:
            assert runner.weight_bytes_per_token() == pytest.approx(whole, rel=0.01)
        else:
            assert runner.weight_bytes_per_token() < 0.5 * whole
        runner.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
