"""`Model`: what `load` gives, and what every verb takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentinel.errors import InputError
from sentinel.infer.generate import stream_text
from sentinel.infer.grammar import Form
from sentinel.infer.opening import make_engine, refuse_dtype
from sentinel.infer.quantised import QuantisedModel, is_quantised
from sentinel.infer.sampling import SamplingSettings
from sentinel.models.origin import Origin

if TYPE_CHECKING:
    from sentinel.adapt.cycles.adaptation import Adaptation
    from sentinel.adapt.recovery.recover import Recovery
    from sentinel.api.exporting import Exported
    from sentinel.formats.sources import LoadedModel
    from sentinel.infer.engine import Engine
    from sentinel.measure.results import Result
    from sentinel.models.decoder import Decoder
    from sentinel.models.spec import ModelSpec

Prompt = str | Sequence[Mapping[str, str]]


class Model(Origin):
    """A causal language model with its tokenizer and the record of how it was made.

    It holds a decoder, which every verb takes, or quantised weights, which only run. `prune`, `quantize` and the other
    verbs return another model and leave this one as it is. ``source`` is the name that it was loaded by, None for one
    that is in memory only. ``recovery`` and ``adaptation`` tell what a verb that trained it did.

    >>> import sentinel
    >>> model = sentinel.load("gpt2", random_weights=0)
    >>> model
    Model('gpt2', 124,439,808 parameters, fp32, random weights)
    >>> model.prune(heads=0.5, settings=sentinel.PruningSettings("magnitude", compensate=False)).spec.n_head_total
    72
    """

    recovery: Recovery | None = None
    adaptation: Adaptation | None = None

    def __init__(self, held: LoadedModel | QuantisedModel, source: str | None = None) -> None:
        self._held = held
        self.source = source
        self.name, self.tokenizer, self.record = held.name, held.tokenizer, held.record
        self.description = held.description
        self._engines: dict[tuple[object, ...], Engine] = {}

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.spec.parameter_count():,} parameters, {self.precision}, {self.weights} weights)"

    @property
    def quantised(self) -> QuantisedModel | None:
        """The packed weights of a model that level 3 runs and nothing changes; None for every other."""
        return self._held.quantised

    @property
    def loaded(self) -> LoadedModel:
        """The decoder with its origin; `InputError` for a quantised model, which has none."""
        return self._held.loaded

    @property
    def decoder(self) -> Decoder:
        """The PyTorch module; `InputError` for a quantised model."""
        return self.loaded.decoder

    @property
    def spec(self) -> ModelSpec:
        """Sizes and features."""
        return self._held.spec

    @property
    def precision(self) -> str:
        """Of the weights that are held: fp32, bf16, fp16, int8 or int4."""
        if self.quantised is not None:
            return self.quantised.native.precision
        from sentinel.models.dtypes import name_of

        return name_of(self.decoder.dtype)

    # --- run --------------------------------------------------------------------------------------------------------

    def engine(
        self,
        level: int | None = None,
        *,
        precision: str | None = None,
        heads: float = 0.0,
        neurons: float = 0.0,
        threads: int | None = None,
        draft: str | None = None,
        kv: str | None = None,
    ) -> Engine:
        """An engine at an optimisation level 0-3 (default 1; 3 of a quantised model) and a stored width (ratios that are
        left out); the same one for the same arguments.

        ``draft`` lets a cheaper copy of the model propose tokens that the engine verifies, several at once: ``int8``,
        ``int4``, or a stored width (``0.5`` of heads, or ``0.5/0.2`` of heads and neurons). The text stays the same.
        ``kv`` is what level 3 keeps keys and values in: half (default), or int8, which takes half as much.
        Raises `InputError` for what the model or this machine can't do.
        """
        key = (level, precision, heads, neurons, threads, draft, kv)
        if key not in self._engines:
            if self.quantised is not None:
                self._engines[key] = self.quantised.engine(*key)
            else:
                decoder = self.decoder.at_width(heads, neurons)
                chosen = 1 if level is None else level
                self._engines[key] = make_engine(
                    decoder, chosen, precision=precision, threads=threads, draft=draft, kv=kv
                )
        return self._engines[key]

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 100,
        sampling: SamplingSettings | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
        level: int | None = None,
        precision: str | None = None,
        heads: float = 0.0,
        neurons: float = 0.0,
        threads: int | None = None,
        draft: str | None = None,
        kv: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer as soon as they are certain.

        ``prompt`` is a text or a list of chat messages (``{"role": ..., "content": ...}``). A text is asked as the user's
        message where the model has a chat template, unless ``raw``; without a template it is continued. Sampling is
        greedy by default. The answer is JSON of ``json_schema`` where one is given (needs the extra ``serve``), or the
        beginning of such JSON where ``max_new_tokens`` cut it. The other arguments are those of `engine`.
        """
        tokenizer = self.require_tokenizer()
        engine = self.engine(
            level, precision=precision, heads=heads, neurons=neurons, threads=threads, draft=draft, kv=kv
        )
        ids = self._token_ids(prompt, raw=raw)
        form = None if json_schema is None else Form.json_schema(json_schema)
        return stream_text(engine, tokenizer, ids, max_new_tokens, sampling, stop, form=form)

    def _token_ids(self, prompt: Prompt, *, raw: bool) -> list[int]:
        tokenizer = self.require_tokenizer()
        if isinstance(prompt, str) and (raw or tokenizer.chat_template is None):
            return tokenizer.encode(prompt)
        if raw:
            raise InputError("chat messages can't be continued raw; give a text")
        return tokenizer.apply_chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """The whole answer; options as in `stream`."""
        return "".join(self.stream(prompt, **options))

    def evaluate(self, text: str = "built-in", **options: Any) -> Result:
        """Perplexity and more on ``text``; see `sentinel.evaluate`."""
        return _verb("evaluate")(self, text, **options)

    # --- change -----------------------------------------------------------------------------------------------------

    def prune(self, **options: Any) -> Model:
        """A smaller model; see `sentinel.prune`."""
        return _verb("prune")(self, **options)

    def quantize(self, precision: str = "int8", **options: Any) -> Model:
        """A model of packed weights that runs without torch; see `sentinel.quantize`."""
        return _verb("quantize")(self, precision, **options)

    def integrate(self, configuration: str = "all", **options: Any) -> Model:
        """A model with U-Net skips and baseline integration; see `sentinel.integrate`."""
        return _verb("integrate")(self, configuration, **options)

    def recover(self, teacher: Model | str, **options: Any) -> Model:
        """A model that has learned its ``teacher``'s predictions; see `sentinel.recover`."""
        return _verb("recover")(self, teacher, **options)

    def export(self, path: str | Path, format: str = "hugging-face", **options: Any) -> Exported:
        """Write the model for another runtime; see `sentinel.export`."""
        return _verb("export")(self, path, format, **options)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the model to ``folder``, whole or not at all, to be loaded again by `load`, the command line or, if it is
        not quantised, Hugging Face's Auto classes.

        Raises `InputError` for a folder that holds anything; with ``force`` what sentinel wrote there is replaced.
        """
        if self.quantised is not None:
            return self.quantised.save(folder, force=force)
        from sentinel.formats.checkpoint import save_checkpoint

        save_checkpoint(self.decoder, folder, self.tokenizer, self.record, force=force)
        return Path(folder)


def _verb(name: str) -> Callable[..., Any]:
    """The public function of that name; the verbs take and make models, and so can't be imported here."""
    import sentinel

    return getattr(sentinel, name)


def load(
    model: str | Path, *, random_weights: int | None = None, device: str = "cpu", dtype: str | None = None
) -> Model:
    """Load ``model``: hub id, folder (a quantised one too, without torch), ``.gguf`` file or ``smollm2-135m``.

    ``dtype`` is the type that weights are held in: fp32 (the default), bf16, fp16, or "auto", as they are stored. Level 1
    computes in it, levels 2 and 3 on the CPU pack from it, and `Model.save` keeps it. Verbs that change a model compute
    in fp32, and what they make is fp32 again; only `quantize` without calibration takes it as it is.

    With ``random_weights`` (a seed) only the shape of the model is taken, and the weights are drawn.
    Raises `InputError` for anything that can't be loaded.
    """
    source = str(model)
    folder = Path(source).expanduser()
    if folder.is_dir() and random_weights is None and is_quantised(folder):
        if device != "cpu":
            raise InputError(f"{source} is quantised, which runs on the CPU only; leave out device")
        refuse_dtype(source, dtype)
        return Model(QuantisedModel.load(folder), source)
    from sentinel.formats.sources import load

    return Model(load(source, random_weights=random_weights, device=device, dtype=dtype or "fp32"), source)


def as_model(model: Model | str | Path, dtype: str | None = None) -> Model:
    """``model`` itself, or what that name stands for, loaded in ``dtype``."""
    return model if isinstance(model, Model) else load(model, dtype=dtype)


def generate(model: Model | str | Path, prompt: Prompt, **options: Any) -> str:
    """The answer of ``model`` to ``prompt``; options as in `Model.stream`."""
    return as_model(model).generate(prompt, **options)
