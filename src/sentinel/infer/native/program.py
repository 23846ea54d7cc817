"""The compiled program: machine code from disk, or, the first time, from Numba.

Numba's own cache needs Numba to load, which takes a second and 100 MB. So the code is kept as an object file, for
exactly these sources, versions and CPU, and llvmlite alone links it into the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import json
import platform
import re
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding

from sentinel.errors import InputError
from sentinel.files import cache_folder, make_folder, not_kept, write_file
from sentinel.progress import say, working

from .kernels.cpu import CPU_NAME, FEATURE_STRING

_NAME = re.compile(r"[0-9a-f]{24}\.o")
# Named by Numba's code for arrays that own their memory. Ours never do, so that any address will do, but there must be one.
_NEVER_CALLED = "NRT_MemInfo_call_dtor"


@dataclass(frozen=True)
class _Object:
    """An object file, the name of its function, and what it needs of the process."""

    code: bytes
    symbol: str
    externals: tuple[str, ...]

    def write(self, path: Path) -> None:
        header = json.dumps({"symbol": self.symbol, "externals": self.externals, "crc32": zlib.crc32(self.code)})
        make_folder(path.parent)
        with write_file(path) as temporary:
            temporary.write_bytes(header.encode() + b"\n" + self.code)

    @classmethod
    def read(cls, path: Path) -> _Object | None:
        """What `write` wrote; None if there is nothing or it is damaged."""
        try:
            line, _, code = path.read_bytes().partition(b"\n")
            header = json.loads(line)
            found = cls(code, header["symbol"], tuple(header["externals"]))
            return found if zlib.crc32(code) == header["crc32"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Program:
    """`kernels.participate` as a function of three integers: address of the state, thread, spins.

    The interpreter lock is released during a call. Raises `RuntimeError` if the code reports an error.
    """

    def __init__(self, found: _Object) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        _provide(found.externals)
        machine = binding.Target.from_default_triple().create_target_machine()
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)  # owns the code
        self._engine.add_object_file(binding.ObjectFileRef.from_data(found.code))
        self._engine.finalize_object()
        # Numba's calling convention: where to put the result, where to put an exception, the arguments; a status
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3)
        self._function = kind(self._engine.get_function_address(found.symbol))

    def __call__(self, state: int, thread: int, spins: int) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        status = self._function(ctypes.addressof(result), ctypes.addressof(error), state, thread, spins)
        if status:
            raise RuntimeError(f"the compiled step failed with status {status}")
        return result.value


@functools.cache
def program() -> Program:
    """The program for this CPU; compiled, with a message, if it is not on disk yet."""
    path = code_folder() / f"{_key()}.o"
    found = _Object.read(path)
    if found is None:
        with working("Compiling the kernels for this CPU, once (about a minute)"):
            found = _compile()
        try:
            found.write(path)
        except InputError as error:
            say(not_kept("the compiled kernels", error))
    return Program(found)


def code_folder() -> Path:
    """Where compiled kernels are kept."""
    return cache_folder() / "kernels"


def code_files() -> list[Path]:
    """All compiled kernels that are kept, of this and of other versions."""
    found = code_folder().glob("*.o") if code_folder().is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def _key() -> str:
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parent / "kernels").glob("*.py")):
        digest.update(file.read_bytes())
    parts = (version("numba"), version("llvmlite"), platform.python_version(), platform.platform())
    digest.update(repr((*parts, CPU_NAME, FEATURE_STRING)).encode())
    return digest.hexdigest()[:24]


def _compile() -> _Object:
    from numba import types

    from .kernels.participate import participate

    function: Any = participate
    signature = (types.int64, types.int64, types.int64)
    function.compile(signature)
    module = binding.parse_assembly(function.inspect_llvm(signature))
    symbol = function.overloads[signature].fndesc.llvm_func_name
    externals = tuple(f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm."))
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=CPU_NAME, features=FEATURE_STRING, opt=3, codemodel="jitdefault")
    return _Object(machine.emit_object(module), symbol, externals)


def _provide(externals: tuple[str, ...]) -> None:
    """Make sure that every symbol has an address: linking without one would end the process."""
    for name in externals:
        if binding.address_of_symbol(name) is None and (address := _address(name)):
            binding.add_symbol(name, address)
    if any(binding.address_of_symbol(name) is None for name in externals):
        from numba.core.registry import cpu_target  # adds the symbols of its run-time library and of the C library

        context: Any = cpu_target.target_context
        context.refresh()
    missing = [name for name in externals if binding.address_of_symbol(name) is None]
    if missing:
        raise RuntimeError(f"the compiled kernels need {', '.join(missing)}, which this system does not have")


def _address(name: str) -> int | None:
    """Where the process or the C mathematical library has a function; None if neither has it."""
    if name == _NEVER_CALLED:
        return ctypes.cast(ctypes.pythonapi.Py_FatalError, ctypes.c_void_p).value
    for library in (None, ctypes.util.find_library("m")):
        with contextlib.suppress(OSError, TypeError, AttributeError):  # no such library or function
            return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value
    return None
