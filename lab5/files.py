"""Files that are there whole or not at all, whatever cuts their writing off."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Call `write(temporary path)`, then put the result in place of `path`; `keep` gets what was there before.

    Raises OSError that names the path where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if keep and path.exists():              # between this move and the next only `keep` is there
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error.strerror or error}); what was there before is untouched. "
                      "Make room or the folder writable, or choose another") from error
    finally:
        with suppress(OSError):                 # where nothing can be written, nothing is there
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Put a text in place of a file, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
