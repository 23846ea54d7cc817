"""Outputs appear whole or not at all, and nothing is replaced or removed that sentinel did not write.

Everything is written under a temporary name and renamed. A folder that sentinel wrote holds a manifest of its files, so
that its own can be told from others (`folders`).
"""

from sentinel.files.folders import (
    MANIFEST,
    check_output_folder,
    claim_folder,
    remove_written,
    write_folder,
    write_into,
    written_size,
)
from sentinel.files.places import cache_folder, make_folder, not_kept, require_makeable
from sentinel.files.single import check_output_file, is_stream, stdout_reserved, write_file, write_text

__all__ = [
    "MANIFEST",
    "cache_folder",
    "check_output_file",
    "check_output_folder",
    "claim_folder",
    "is_stream",
    "make_folder",
    "not_kept",
    "remove_written",
    "require_makeable",
    "stdout_reserved",
    "write_file",
    "write_folder",
    "write_into",
    "write_text",
    "written_size",
]
