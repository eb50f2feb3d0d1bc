"""Write a bundle for another program into a new folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeres.bundle import steady
from edgeres.deploy.network import Deployed, network_of
from edgeres.deploy.programs import PROGRAMS
from edgeres.errors import EnvironmentError_, UsageError
from edgeres.files import DISK_FULL, FREE_SPACE, make_folder, temporary_name, write_file


def deploy(bundle: Path, to: str, output: Path, max_batch: int | None = None) -> Deployed:
    """Write ``output``, complete or not at all.

    Args:
        to: ``triton``, ``deepstream``, ``trtexec`` or ``ros2``.
        output: a folder that does not exist yet.
        max_batch: largest batch; None: what the engine takes, else 8 for Triton and 1 for the others.

    Raises:
        UsageError: there is no such program, or ``output`` exists.
        BundleError, EngineError, ModelError: the bundle has not what it needs.
        EnvironmentError_: ``output`` cannot be written.
    """
    if to not in PROGRAMS:
        raise UsageError(f"no program is named {to!r}", hint=f"give {', '.join(PROGRAMS)}")
    if output.exists() or output.is_symlink():
        raise UsageError("exists already", where=output, hint="give another folder: -o DIR")
    made = PROGRAMS[to](steady(bundle, network_of), max_batch)
    target = output.resolve()
    partial = target.with_name(temporary_name(target.name, "partial"))
    try:
        make_folder(target.parent)
        for name, content in made.files.items():
            write_file(partial / name, content)
            if name.endswith(".sh"):
                (partial / name).chmod(0o755)
        partial.rename(target)
    except OSError as error:
        hint = FREE_SPACE if error.errno in DISK_FULL else "check the path and its permissions"
        raise EnvironmentError_(f"cannot be written ({error.strerror or error})", where=output, hint=hint) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made
