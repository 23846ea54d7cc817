"""`optimize`: the best model for a goal, found among precisions, widths and what was recovered of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sentinel.adapt.pruning.plan import check_ratio
from sentinel.adapt.text.judges import ALL_JUDGES
from sentinel.api.model import Model, as_model, load
from sentinel.api.search import WIDTHS, How, Search
from sentinel.errors import InputError
from sentinel.files import check_output_folder
from sentinel.measure.decode_speed import Ratios
from sentinel.measure.results import ResultSet
from sentinel.models.record import SELF
from sentinel.report.optimized import PAGE, RESULTS, Kinds, conclude
from sentinel.report.recommend import Demand, Recommendation


@dataclass(frozen=True)
class Optimized:
    """What `optimize` wrote to ``folder``: the choice, all rows, and which kinds of text chose and told."""

    folder: Path
    choice: Recommendation
    results: ResultSet
    kinds: Kinds

    @property
    def model(self) -> Model:
        """The model that was chosen."""
        return load(self.folder)


def optimize(
    model: Model | str | Path,
    folder: str | Path,
    *,
    max_perplexity_increase: float = 0.05,
    min_tokens_per_s: float | None = None,
    max_memory: float | None = None,
    minutes: float | None = None,
    widths: Sequence[Ratios] = WIDTHS,
    calibration: str = SELF,
    calibration_tokens: int = 8192,
    text: str = ALL_JUDGES,
    eval_tokens: int = 4096,
    threads: int | None = None,
    force: bool = False,
) -> Optimized:
    """Write to ``folder`` the fastest model at level 3 that keeps the limits, with a page and a results file on how it was
    found.

    Searched are int8 and int4, whole and at ``widths`` (shares of heads and neurons that are removed, compensated), and
    with ``minutes`` one width that learns for so long from the model as loaded. Limits: the increase in perplexity over
    that model (0.05 is 5 %), new tokens a second after 64 of prompt, and MB at the peak of a process that runs it. Of the
    kinds of ``text``, ``eval_tokens`` each, every second one chooses, and the others tell how good the choice is.

    What was found lies in ``folder`` with ``.search`` after its name until the model is written, and the same call goes on
    from it. Raises `InputError` for a goal that nothing meets, with what came nearest, and for random weights.
    """
    place = check_output_folder(folder, force, (PAGE, RESULTS)).resolve()
    demand = Demand(
        max_perplexity_increase=max_perplexity_increase, max_memory_mb=max_memory, min_tokens_per_s=min_tokens_per_s
    )
    for heads, neurons in widths:
        check_ratio("heads", heads)
        check_ratio("neurons", neurons)
    how = How(tuple(widths), calibration, calibration_tokens, text, eval_tokens)
    search = Search(as_model(model), search_folder(place), how, demand, minutes, threads)
    search.run()
    results = search.results()
    made = conclude(results.results, search.kinds, demand, str(folder))
    if made.chosen is None:
        raise InputError(
            f"{made.reason[0].lower()}{made.reason[1:].rstrip('.')} (what was found is kept in {search.folder} "
            "for the next try)"
        )
    search.write(made, results, place, force)
    return Optimized(place, made, results, search.kinds)


def search_folder(folder: Path) -> Path:
    """Where what is found lies until the model is written."""
    return folder.with_name(f"{folder.name}.search")
