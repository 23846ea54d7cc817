"""From a decoder to packed weights at every stored width, int4 on calibration text."""

from __future__ import annotations

from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer import calibration_text
from sentinel.infer.native import NativeWeights, PackedWidth, Precision
from sentinel.infer.native.weights import Grams
from sentinel.infer.pack import pack, pack_width
from sentinel.infer.quantised import Ratios
from sentinel.models.decoder import Decoder
from sentinel.progress import say, track

DEFAULT_TOKENS = 16_384


def calibration_windows(loaded: LoadedModel, texts: str, tokens: int) -> Windows | None:
    """Windows of ``texts`` that int4 is calibrated on; None for random weights, to which no text means anything.

    Raises `InputError` for a model without a tokenizer and for too little text.
    """
    if loaded.weights == "random":
        say("random weights: int4 without calibration, since no text means anything to them")
        return None
    if loaded.tokenizer is None and calibration_text.split_own(texts)[1]:
        raise InputError(
            f"{loaded.name} has no tokenizer to calibrate with; calibrate on its own text alone (self), or give "
            "--no-calibration (calibration=None)"
        )
    return calibration_text.calibration_windows(loaded, texts, tokens)


def quantise(
    decoder: Decoder, precision: Precision, windows: Windows | None
) -> tuple[NativeWeights, dict[Ratios, PackedWidth]]:
    """Packed weights of ``decoder``, and its stored widths; the whole is set afterwards."""

    def grams() -> Grams | None:
        return None if windows is None else input_grams(decoder, windows.tokens)

    decoder.set_width(0.0)
    weights, widths = pack(decoder, precision, grams()), {}
    for stored in track(decoder.widths, "Quantising stored widths", len(decoder.widths)):
        decoder.set_width(stored.heads, stored.neurons)
        widths[stored.heads, stored.neurons] = pack_width(decoder, precision, grams())
    decoder.set_width(0.0)
    return weights, widths
