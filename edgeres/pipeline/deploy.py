"""Write a bundle for another program into a new folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeres.bundle import steady
from edgeres.deploy.doors import DOORS, Deployed
from edgeres.deploy.network import network_of
from edgeres.errors import EnvironmentError_, UsageError
from edgeres.files import make_folder, temporary_name, write_file


def deploy(bundle: Path, to: str, output: Path, max_batch: int | None = None) -> Deployed:
    """Write ``output``, complete or not at all.

    Args:
        to: ``triton``, ``deepstream`` or ``trtexec``.
        output: a folder that does not exist yet.
        max_batch: largest batch; None: what the engine takes, else 8 for Triton and 1 for the others.

    Raises:
        UsageError: there is no such program, or ``output`` exists.
        BundleError, EngineError, ModelError: the bundle has not what it needs.
    """
    if to not in DOORS:
        raise UsageError(f"no program is named {to!r}", hint=f"give {', '.join(DOORS)}")
    if output.exists() or output.is_symlink():
        raise UsageError("exists already", where=output, hint="give another folder: -o DIR")
    made = DOORS[to](steady(bundle, network_of), max_batch)
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
        raise EnvironmentError_(f"cannot be written ({error.strerror or error})", where=output) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made
