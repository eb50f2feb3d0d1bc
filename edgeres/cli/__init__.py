"""The command line: parse, call one library function, show the result. Commands load when they are used."""

from __future__ import annotations

import errno
import signal
import sys
from importlib import import_module
from typing import Any

import click

from edgeres._version import __version__
from edgeres.errors import EdgeresError

# name: (module in this package, one line for --help); the modules stay unimported until their command runs.
COMMANDS = {
    "build": ("build", "Take a trained ResNet to a verified INT8 bundle."),
    "export": ("export", "Write a model of the zoo as FP32 ONNX."),
    "quantize": ("quantize", "Quantize any ResNet-like ONNX file."),
    "engine": ("engine", "Build a bundle's engine for the GPU of this machine."),
    "verify": ("verify", "Measure a bundle against its FP32 baseline, and judge."),
    "inspect": ("inspect", "Show what is quantized, what is not, and why."),
    "predict": ("predict", "Classify images with a bundle."),
    "models": ("models", "List architectures and weights."),
    "targets": ("targets", "List devices and runtimes to build for."),
    "doctor": ("doctor", "Tell what this machine can do, and what is missing."),
}

INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are imported on use, so that ``--help`` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"edgeres.cli.{COMMANDS[name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgeres")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """A trained ResNet in, a verified INT8 engine out.

    \b
    edgeres build --model resnet18 --int8         a bundle with everything in it
    edgeres predict resnet18.edgeres photo.jpg    use it

    Exit codes: 0 passed, 1 a gate failed, 2 wrong usage, 3 the input or the environment prevents it, 130 interrupted.
    """
    ctx.obj = debug


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv[1:]
    try:
        code: Any = cli.main(prog_name="edgeres", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; nothing was written")
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: there is nobody to tell
        code = 0
    except (EdgeresError, OSError) as error:
        if debug:
            raise
        _say(_one_line(error))
        code = error.exit_code if isinstance(error, EdgeresError) else EdgeresError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: EdgeresError | OSError) -> str:
    if isinstance(error, EdgeresError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    full = {errno.ENOSPC, errno.EDQUOT}
    hint = "; free some space and run it again, nothing was half-written" if error.errno in full else ""
    return f"{where}{error.strerror or error}{hint}"


def _say(line: str) -> None:
    click.echo(f"edgeres: {line}", err=True)


def _terminate(number: int, frame: object) -> None:
    """A request to stop cleans up as Ctrl-C does."""
    raise KeyboardInterrupt
