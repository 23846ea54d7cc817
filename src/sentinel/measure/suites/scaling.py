"""What being adaptive costs models of several sizes: parameters, tokens/s and memory, before and after.

The other shapes than the model's own have random weights, so that nothing is downloaded. "gates" is the model with a gate
per head, which is what every model is here; "all" has skips and baseline integration at that rank as well. The parameters
of the baseline are those of the model and are not counted again, its memory is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sentinel.adapt.integration import DEFAULT_RANK, integrate, require_plain
from sentinel.formats.sources import load
from sentinel.infer.opening import make_engine
from sentinel.measure.memory import MemoryRequest, measure_peak_memory
from sentinel.measure.results import Result
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.generation import generate_in_turn
from sentinel.measure.suites.request import Request
from sentinel.models.decoder import Decoder
from sentinel.progress import track, working

SEED = 0
LEVEL = 1


@dataclass(frozen=True)
class Variant(Subject):
    """A model before or after being made adaptive."""

    configuration: str = "minimal"
    rank: int | None = None

    @property
    def name(self) -> str:
        return label(self.configuration, self.rank)


def label(configuration: str, rank: int | None) -> str:
    """How a variant is called in the table."""
    if configuration == "minimal":
        return "gates"
    return f"{configuration}, {'full rank' if rank is None else f'rank {rank}'}"


def run(request: Request) -> list[Result]:
    """Three rows for each shape that the settings name, and for the model itself."""
    require_plain(request.loaded.decoder, "the scaling suite")
    others = [shape for shape in request.settings.shapes if shape not in (request.source, request.loaded.name)]
    rows = [row for shape in others for row in _rows_of(_request_of(request, shape))]
    return [*rows, *_rows_of(request)]


def _request_of(request: Request, shape: str) -> Request:
    with working(f"Making {shape}"):
        return replace(
            request,
            loaded=load(shape, random_weights=SEED, device=str(request.loaded.decoder.device)),
            source=shape,
            random_weights=SEED,
        )


def _rows_of(request: Request) -> list[Result]:
    loaded = request.loaded
    variants = [_variant(loaded.decoder, *what) for what in (("minimal", None), ("all", DEFAULT_RANK), ("all", None))]
    settings = request.settings
    found = generate_in_turn(request, "scaling", variants, batch=settings.batch)
    before = loaded.spec.parameter_count()
    rows = []
    for one in track(found, f"Measuring the memory of {loaded.name}", len(found)):
        assert isinstance(one.subject, Variant)
        asked = MemoryRequest(
            request.source,
            request.random_weights,
            f"level {LEVEL}",
            settings.prompt,
            settings.new_tokens,
            settings.batch,
            configuration=one.subject.configuration,
            rank=one.subject.rank,
            device=str(loaded.decoder.device),
        )
        after = one.subject.spec.parameter_count(gates=True, baseline=False)
        rows.append(
            replace(
                one.row,
                engine=one.subject.name,
                configuration=one.subject.name,
                parameters=after,
                parameters_before=before,
                growth=after / before - 1,
                peak_memory_mb=measure_peak_memory(asked),
            )
        )
    return rows


def _variant(decoder: Decoder, configuration: str, rank: int | None) -> Variant:
    made = integrate(decoder, configuration, rank=rank)
    return Variant(make_engine(made, LEVEL), made.spec, LEVEL, configuration=configuration, rank=rank)
