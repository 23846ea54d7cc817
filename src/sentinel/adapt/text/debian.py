"""Texts that ship in Debian packages."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

from sentinel.errors import InputError
from sentinel.progress import working


def debian_package(package: str, text: str, scratch: Path) -> Path:
    """The unpacked ``package``, which holds the text of that name; `InputError` where it can't be fetched."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise InputError(
            f"the text {text!r} comes from a Debian package, and this is not Debian; use another or a file"
        )
    with working(f"Downloading {package} from Debian"):
        for command in (["apt-get", "download", "-q", package], ["sh", "-c", f"dpkg-deb -x {package}_*.deb {package}"]):
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise InputError(f"the text {text!r} can't be fetched ({said}); run 'apt-get update', or use another")
    return scratch / package


def read_text(path: Path) -> str:
    """The text of a file that may be compressed, as Debian does with documentation."""
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8", "replace")


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each in one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
