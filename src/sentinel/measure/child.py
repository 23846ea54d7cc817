"""Questions that a process of its own answers, so that nothing else counts in what it measures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

from sentinel.errors import InputError


def ask(module: str, request: Any, what: str) -> Any:
    """Run ``module`` with the dataclass ``request`` as JSON, and read its last line of output as JSON.

    Raises `InputError` that names ``what`` and the last thing that was said when it fails.
    """
    command = [sys.executable, "-m", module, json.dumps(dataclasses.asdict(request))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{what} could not be measured ({said})")
    return json.loads(done.stdout.strip().splitlines()[-1])
