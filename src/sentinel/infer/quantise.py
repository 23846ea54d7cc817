"""From a decoder to packed weights at every stored width, int4 on calibration text."""

from __future__ import annotations

from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer import calibration_text
from sentinel.infer.native import NativeWeights, PackedWidth, Precision
from sentinel.infer.native.weights import Grams
from sentinel.infer.pack import Source, pack, pack_width, tell_memory
from sentinel.infer.quantised import Ratios
from sentinel.models.decoder import Decoder
from sentinel.models.origin import Origin
from sentinel.progress import say, track

DEFAULT_TOKENS = 16_384


def can_calibrate(model: Origin) -> bool:
    """False, which is said, for random weights, to which no text means anything."""
    if model.weights == "random":
        say("random weights: int4 without calibration, since no text means anything to them")
    return model.weights != "random"


def calibration_windows(loaded: LoadedModel, texts: str, tokens: int) -> Windows:
    """Windows of ``texts`` that int4 is calibrated on.

    Raises `InputError` for a model without a tokenizer and for too little text.
    """
    if loaded.tokenizer is None and calibration_text.split_own(texts)[1]:
        raise InputError(
            f"{loaded.name} has no tokenizer to calibrate with; calibrate on its own text alone (self), or give "
            "--no-calibration (calibration=None)"
        )
    return calibration_text.calibration_windows(loaded, texts, tokens)


def quantise(
    source: Source, precision: Precision, windows: Windows | None
) -> tuple[NativeWeights, dict[Ratios, PackedWidth]]:
    """Packed weights of ``source``, and its stored widths; the whole is set afterwards. With ``windows`` it is a
    decoder."""

    def grams() -> Grams | None:
        if windows is None:
            return None
        assert isinstance(source, Decoder)
        return input_grams(source, windows.tokens)

    tell_memory(source.spec, precision, dense=windows is not None)
    source.set_width(0.0)
    weights, widths = pack(source, precision, grams()), {}
    for stored in track(source.widths, "Quantising stored widths", len(source.widths)):
        source.set_width(stored.heads, stored.neurons)
        widths[stored.heads, stored.neurons] = pack_width(source, precision, grams())
    source.set_width(0.0)
    return weights, widths
