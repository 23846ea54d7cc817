"""Generation by the inference engines of others that are installed, beside Hugging Face and levels 2 and 3, in turn.

All have the same weights, the same prompts and the same number of threads, keep a KV cache, and decode greedily. A pruned
model is measured in turn with the one that it was made from, in every engine.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.measure.peers import PEERS, Peer, PeerSettings, Runner, is_installed
from sentinel.measure.results import UNPRUNED, Result
from sentinel.measure.suites.engines import Engines, Subject
from sentinel.measure.suites.generation import Generated, check_fits, generate_in_turn
from sentinel.measure.suites.request import Request
from sentinel.measure.suites.unpruned import beside_unpruned, unpruned_of
from sentinel.models.decoder import Decoder
from sentinel.models.features import require_supported
from sentinel.models.spec import ModelSpec
from sentinel.progress import say, working


def run(request: Request) -> list[Result]:
    """A row for Hugging Face, if its class holds the model, for levels 2 and 3, and for each kind of weights of each peer
    that is installed; of a pruned model likewise for the unpruned one."""
    return compare(request, PEERS)


def compare(request: Request, peers: Sequence[Peer]) -> list[Result]:
    """The suite with these ``peers``. Raises `InputError` when none of them is installed or can run the model."""
    request.require_cpu("other engines are run")
    check_fits(request)
    settings, engines = request.settings, request.engines
    usable_at = {batch: usable(peers, batch) for batch in settings.batches}
    models = [(request.loaded, engines)]
    if unpruned := unpruned_of(request):
        models.append((unpruned, Engines(unpruned, engines.threads)))
    ours = [_ours(request, *model) for model in models]
    return [row for batch, chosen in usable_at.items() for row in _rows(request, models, ours, chosen, batch)]


def _ours(request: Request, loaded: LoadedModel, engines: Engines) -> list[Subject]:
    """Hugging Face, if its class holds the model, and levels 2 and 3."""
    found = [*_hugging_face(loaded, engines), engines.at(2)]
    return found + [engines.at(3, precision) for precision in request.settings.precision]


def _rows(
    request: Request,
    models: Sequence[tuple[LoadedModel, Engines]],
    ours: Sequence[Sequence[Subject]],
    peers: Sequence[Peer],
    batch: int,
) -> list[Result]:
    """Rows of every length of prompt at one batch: of the model, and of the unpruned one if there is another."""
    settings = request.settings
    threads = request.engines.threads or torch.get_num_threads()
    wanted = PeerSettings(threads, batch, max(settings.prompt_tokens) + settings.new_tokens)
    rows: list[Result] = []
    with contextlib.ExitStack() as stack:
        subjects: list[Subject] = []
        for (loaded, _), mine, configuration in zip(models, ours, (None, UNPRUNED), strict=False):
            runners = stack.enter_context(prepared(loaded.decoder, peers, wanted))
            theirs = [Subject(runner, loaded.spec, precision=precision) for precision, runner in runners]
            subjects += [replace(subject, configuration=configuration) for subject in (*mine, *theirs)]
        for length in settings.prompt_tokens:
            one = replace(request, settings=replace(settings, prompt_tokens=(length,)))
            found = generate_in_turn(one, "peers", subjects, batch=batch)
            of_model = [_told(found, loaded, c) for (loaded, _), c in zip(models, (None, UNPRUNED), strict=False)]
            rows += of_model[0] if len(of_model) == 1 else beside_unpruned(*of_model)
    return rows


def _told(found: Sequence[Generated], loaded: LoadedModel, configuration: str | None) -> list[Result]:
    """The rows of one model, which say whether their tokens are those of its first engine."""
    own = [each for each in found if each.subject.configuration == configuration]
    return [replace(each.row, model=loaded.name, same_tokens_as_reference=each.tokens == own[0].tokens) for each in own]


def _hugging_face(loaded: LoadedModel, engines: Engines) -> list[Subject]:
    """The reference; nothing where Hugging Face's class can't hold the model, as one whose layers differ."""
    try:
        return [engines.hugging_face()]
    except InputError as error:
        say(f"Hugging Face is left out of {loaded.name}, and level 2 is the reference: {error}")
        return []


def usable(peers: Sequence[Peer], batch: int) -> list[Peer]:
    """The peers that are installed and take that batch; the others are named."""
    kept = []
    for peer in peers:
        if not is_installed(peer):
            say(f"{peer.NAME} is not installed; pip install {' '.join(peer.REQUIREMENTS)}")
        elif batch > peer.MAX_BATCH:
            say(f"{peer.NAME} is left out: it takes {peer.MAX_BATCH} sequences at once here, not {batch}")
        else:
            kept.append(peer)
    if not kept:
        raise InputError(
            "none of the other engines can be run; install some of them (pip install 'sentinel-ai[peers]')"
        )
    return kept


def able(peers: Sequence[Peer], spec: ModelSpec) -> list[Peer]:
    """The peers that do what the model needs; the others are named."""
    kept: list[Peer] = []
    for peer in peers:
        try:
            require_supported(spec, peer.SUPPORTS, peer.NAME)
        except InputError as error:
            say(f"{peer.NAME} is left out: {error}")
        else:
            kept.append(peer)
    return kept


@contextmanager
def prepared(decoder: Decoder, peers: Sequence[Peer], settings: PeerSettings) -> Iterator[list[tuple[str, Runner]]]:
    """Runners of ``decoder`` with their precisions, loaded from files that are removed at the end.

    What a peer can't run is named. Raises `InputError` when that is all of it.
    """
    runners: list[tuple[str, Runner]] = []
    with tempfile.TemporaryDirectory(prefix="sentinel-peers-") as folder:
        try:
            for peer in able(peers, decoder.spec):
                for variant, precision in peer.VARIANTS.items():
                    with working(f"Preparing {peer.NAME} {variant}"):
                        try:
                            runners.append((precision, peer.prepare(decoder, Path(folder), variant, settings)))
                        except InputError as error:
                            say(f"{peer.NAME} {variant} is left out: {error}")
            if not runners:
                raise InputError("none of the installed engines can run this model")
            yield runners
        finally:
            for _, runner in runners:
                runner.close()
