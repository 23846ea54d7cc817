"""From a decoder to packed weights at every stored width, int4 on calibration text."""

from __future__ import annotations

from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.text.corpora import Windows, load_texts, sample_windows
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.native import NativeWeights, PackedWidth, Precision
from sentinel.infer.native.weights import Grams
from sentinel.infer.pack import pack, pack_width
from sentinel.infer.quantised import Ratios
from sentinel.models.decoder import Decoder
from sentinel.progress import say, track

DEFAULT_TOKENS = 16_384
WINDOW = 512


def calibration_windows(loaded: LoadedModel, texts: str, tokens: int) -> Windows | None:
    """Windows of ``texts`` that int4 is calibrated on; None for random weights, to which no text means anything.

    Raises `InputError` for a model without a tokenizer and for too little text.
    """
    if loaded.weights == "random":
        say("random weights: int4 without calibration, since no text means anything to them")
        return None
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.name} has no tokenizer to calibrate with; give --no-calibration (calibration=None)")
    length = min(WINDOW, loaded.spec.max_seq_len)
    return sample_windows(load_texts(texts, "train"), loaded.require_tokenizer(), tokens, length)


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
