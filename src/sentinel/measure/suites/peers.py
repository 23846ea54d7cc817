"""Generation by the inference engines of others that are installed, beside Hugging Face and levels 2 and 3, in turn.

All have the same weights, the same prompts and the same number of threads, keep a KV cache, and decode greedily.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sentinel.errors import InputError
from sentinel.measure.peers import PEERS, Peer, PeerSettings, Runner, is_installed
from sentinel.measure.results import Result
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.generation import check_fits, generate_in_turn
from sentinel.measure.suites.request import Request
from sentinel.models.decoder import Decoder
from sentinel.models.features import require_supported
from sentinel.models.spec import ModelSpec
from sentinel.progress import say, working


def run(request: Request) -> list[Result]:
    """A row for Hugging Face, if its class holds the model, for levels 2 and 3, and for each kind of weights of each peer
    that is installed."""
    return compare(request, PEERS)


def compare(request: Request, peers: Sequence[Peer]) -> list[Result]:
    """The suite with these ``peers``. Raises `InputError` when none of them is installed or can run the model."""
    request.require_cpu("other engines are run")
    check_fits(request)
    settings = request.settings
    usable_at = {batch: usable(peers, batch) for batch in settings.batches}
    ours = [*_hugging_face(request), request.engines.at(2)]
    ours += [request.engines.at(3, precision) for precision in settings.precision]
    return [row for batch, chosen in usable_at.items() for row in _rows(request, ours, chosen, batch)]


def _rows(request: Request, ours: Sequence[Subject], peers: Sequence[Peer], batch: int) -> list[Result]:
    """Rows of every length of prompt at one batch."""
    settings, loaded = request.settings, request.loaded
    threads = request.engines.threads or torch.get_num_threads()
    wanted = PeerSettings(threads, batch, max(settings.prompt_tokens) + settings.new_tokens)
    rows: list[Result] = []
    with prepared(loaded.decoder, peers, wanted) as runners:
        theirs = [Subject(runner, loaded.spec, precision=precision) for precision, runner in runners]
        for length in settings.prompt_tokens:
            one = replace(request, settings=replace(settings, prompt_tokens=(length,)))
            found = generate_in_turn(one, "peers", [*ours, *theirs], batch=batch)
            rows += [replace(each.row, same_tokens_as_reference=each.tokens == found[0].tokens) for each in found]
    return rows


def _hugging_face(request: Request) -> list[Subject]:
    """The reference; nothing where Hugging Face's class can't hold the model, as one whose layers differ."""
    try:
        return [request.engines.hugging_face()]
    except InputError as error:
        say(f"Hugging Face is left out, and level 2 is the reference: {error}")
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
