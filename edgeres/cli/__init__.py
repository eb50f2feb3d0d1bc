"""The command line: parse, call one library function, show the result. Commands load when they are used."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from edgeres._version import __version__
from edgeres.errors import EdgeresError
from edgeres.words import escaped, without_secrets

# name: (module in this package, one line for --help); the modules stay unimported until their command runs.
COMMANDS = {
    "build": ("build", "Build a verified INT8 bundle from a trained ResNet."),
    "init": ("init", "Write commented settings, and folders for images."),
    "export": ("export", "Write a model of the zoo as FP32 ONNX."),
    "quantize": ("quantize", "Quantize any ResNet-like ONNX file."),
    "calibrate": ("calibrate", "Measure ranges once for many builds, or exchange them."),
    "engine": ("engine", "Build a bundle's engine on the machine that will run it."),
    "dla": ("dla", "Show which layers a Jetson's DLA can run, and write its graph."),
    "remote": ("remote", "Build and verify a bundle's engine on another machine, over ssh."),
    "bench": ("bench", "Measure a bundle's latency and throughput on this machine."),
    "profile": ("profile", "Show in which layers an inference spends its time."),
    "verify": ("verify", "Measure a bundle against its FP32 reference, and judge it."),
    "baseline": ("baseline", "Record an accepted build, to compare later builds with."),
    "compare": ("compare", "Show what changed between builds, likely causes first."),
    "history": ("history", "Show a network's figures over its builds, as a table and charts."),
    "inspect": ("inspect", "Show what is quantized, what is not, and why."),
    "predict": ("predict", "Classify images with a bundle."),
    "try": ("try_page", "Show FP32 beside INT8 on your photographs, on a local page."),
    "deploy": ("deploy", "Write a bundle for Triton, DeepStream, trtexec or ROS 2."),
    "push": ("push", "Write a bundle into a registry of containers."),
    "pull": ("pull", "Take a bundle from a registry of containers."),
    "sign": ("sign", "Sign a bundle with an SSH key."),
    "verify-signature": ("verify_signature", "Check that a trusted key signed a bundle."),
    "sbom": ("sbom", "List what a bundle, or edgeres here, is made of, as CycloneDX."),
    "models": ("models", "List architectures and weights."),
    "targets": ("targets", "List devices and runtimes to build for."),
    "doctor": ("doctor", "Check what this machine can do, and what is missing."),
}

# 128 + the signal, as shells report SIGINT and SIGPIPE; 70 (EX_SOFTWARE) is a fault of edgeres.
INTERRUPTED, BROKEN_PIPE, FAULT = 130, 141, 70
_LONGEST_LINE = 490  # of an error, without "edgeres: "


class LazyGroup(click.Group):
    """A group whose commands are imported on use, so that ``--help`` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"edgeres.cli.{COMMANDS[name][0]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if near and near[0] != args[0]:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


_VERSIONS = "With --version: those of the packages, too, as JSON."


def _keep_json(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    ctx.meta["edgeres.json"] = given


def _version(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    """Print the version, or with ``--json`` what reports state of the software and the machine, and end."""
    if not given or ctx.resilient_parsing:
        return
    if ctx.meta["edgeres.json"]:
        from edgeres.cli.show import print_json
        from edgeres.device.environment import environment

        print_json(environment())
    else:
        click.echo(f"edgeres, version {__version__}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, expose_value=False, callback=_version, help="Show the version and exit.")
@click.option("--json", is_flag=True, is_eager=True, expose_value=False, callback=_keep_json, help=_VERSIONS)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error, too.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A trained ResNet in, a verified INT8 engine out.

    \b
    edgeres build --model resnet18 --int8         a bundle with everything in it
    edgeres predict resnet18.edgeres photo.jpg    use it

    Exit codes: 0 passed, 1 a gate failed, 2 wrong usage, 3 the input or the environment prevents it, 130 interrupted.
    """
    if ctx.meta["edgeres.json"]:
        raise click.UsageError("--json goes with --version, or behind the command")
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _terminate)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # it may stand behind the command, too
    try:
        code: Any = cli.main(arguments, prog_name="edgeres", standalone_mode=False)
    except click.ClickException as error:
        _show(error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; nothing is half-written")
        code = INTERRUPTED
    except SystemExit as stop:  # click and rich raise it where the reader of our output is gone
        code = BROKEN_PIPE if stop.code == 1 else stop.code
    except (EdgeresError, OSError, MemoryError, RecursionError) as error:
        if debug:
            traceback.print_exc()
        _say(_one_line(error))
        code = error.exit_code if isinstance(error, EdgeresError) else EdgeresError.exit_code
    except Exception as error:  # all else is a fault of ours; Python's own exit code, 1, would say that a gate failed
        package = _not_loaded(error)
        if package is None or debug:
            traceback.print_exc()
        if package is None:
            _say(f"this is a fault of edgeres ({type(error).__name__}); please report it with the lines above")
            code = FAULT
        else:
            hint = f"python -c 'import {package}' has to work: more memory, or install it again"
            _say(f"{package} cannot be loaded ({type(error).__name__}: {error}); {hint}")
            code = EdgeresError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _not_loaded(error: Exception) -> str | None:
    """The package of others that raised an error while it was imported, as for want of memory; None: there is none."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and package not in ("edgeres", "__main__"):
            return package
    return None


def _one_line(error: EdgeresError | OSError | MemoryError | RecursionError) -> str:
    if isinstance(error, EdgeresError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f' ({error})' if str(error) else ''}; use a smaller --batch or more memory"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read; write it again"
    from edgeres.files import DISK_FULL, FREE_SPACE  # imported where it is used, so that --help starts fast

    where = f"{error.filename}: " if error.filename else ""
    hint = FREE_SPACE if error.errno in DISK_FULL else "check the path and its permissions"
    return f"{where}{error.strerror or error}; {hint}"


def _say(line: str) -> None:
    _tell(f"edgeres: {_shortened(escaped(without_secrets(line)))}")


def _show(error: click.ClickException) -> None:
    """Show wrong usage as click does."""
    said = _shortened(escaped(without_secrets(error.message), keep="\n"))
    error.message = said  # type: ignore[misc]  # Final in click's types
    try:
        error.show()
        sys.stderr.flush()
    except OSError:
        _close_stderr()


def _tell(line: str) -> None:
    try:
        click.echo(line, err=True)
    except OSError:
        _close_stderr()


def _close_stderr() -> None:
    """Nobody reads it, or its disk is full: Python must not fail on it at exit, and replace our exit code."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _shortened(line: str) -> str:
    """At most 490 characters: the place and the cause come first, the next step last."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:300]} ... {line[-185:]}"


def _terminate(number: int, frame: object) -> None:
    """A request to stop cleans up as Ctrl-C does."""
    raise KeyboardInterrupt
