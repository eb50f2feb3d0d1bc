"""edgeres remote"""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeres.cli.options import (
    SRC,
    UserPath,
    as_json,
    engine_options,
    file_option,
    key_options,
    output_option,
    text_option,
    tune_options,
)
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_engines, print_json, print_report
from edgeres.errors import UsageError

if TYPE_CHECKING:
    from edgeres.progress import Progress
    from edgeres.remote.ssh import Host


@click.command("remote")
@click.argument("host")
@click.argument("bundle", type=UserPath())
@click.argument("verify_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- VERIFY OPTIONS]")
@click.option("--validation", metavar="SRC", help=f"Images to verify on; they are copied to the machine. {SRC}.")
@file_option("--validation-labels", "Labels of these images where they are in no class folders: CSV or text.")
@click.option("--target", metavar="NAME", help="cpu: no engine, only verify.  [default: what that machine can build]")
@engine_options
@tune_options
@text_option("--to", "directory", default="edgeres", metavar="DIR", text="Folder on that machine.")
@text_option("--edgeres", default="edgeres", metavar="PATH", text="Command of edgeres on that machine.")
@click.option("--python", metavar="PATH", help="Python on that machine that has edgeres, or that --install takes.")
@text_option("--ssh", default="ssh", metavar="COMMAND", text='Command of ssh, e.g. "ssh -p 2222" or "ssh -F FILE".')
@click.option("--install", is_flag=True, help="First install edgeres there, from wheels that are fetched here.")
@click.option("--any-version", is_flag=True, help="Continue where that machine has another version of edgeres.")
@output_option("DIR", "Folder of the report.  [default: BUNDLE.HOST]")
@key_options
@as_json
@click.pass_context
def command(ctx: click.Context, /, host: str, bundle: Path, output: Path | None, as_json: bool, **given: Any) -> None:
    """Build and verify a bundle's engine on another machine, over ssh.

    \b
    edgeres remote robot resnet50.edgeres
    edgeres remote robot resnet50.edgeres --install
    edgeres remote me@10.0.0.7 resnet50.edgeres --validation data/val \\
        -- --max-drop 0.5

    HOST is a host as ssh takes it; keys, ports and names come from your ssh configuration. The machine needs edgeres:
    --install puts it into a virtual environment in the folder --to there, made with --python's Python, and uses it.
    That machine needs no internet connection. The engine is copied back into the bundle, the report into BUNDLE.HOST.
    After an interruption the same command continues where it stopped.

    --trust checks the signature here and, after copying, over there. --key signs the bundle with the engines that came
    back, unless a gate failed, and takes the signature there: `edgeres.load(..., trust=KEYS)` runs these engines then.

    Options behind -- are passed to edgeres verify on that machine. Exit codes are those of edgeres verify.
    """
    from edgeres.data.choose import DataChoice, check_paths
    from edgeres.remote.session import RemoteChoice, build_there
    from edgeres.remote.ssh import Host
    from edgeres.signing import KeyChoice

    labels = given["validation_labels"]
    check_paths(DataChoice(validation=given["validation"], validation_labels=labels))
    if given["directory"].startswith("~"):
        raise UsageError("is relative to the home folder there anyway", where="--to", hint="leave ~/ out")
    if given["verify_options"] and given["validation"] is None:
        what = "are for edgeres verify, which needs images"
        raise UsageError(what, where="options behind --", hint="--validation SRC")
    machine = Host(host, _words("--ssh", given["ssh"]))
    directory = given["directory"].rstrip("/") or "/"
    choice = RemoteChoice(
        directory=directory,
        edgeres=_edgeres(ctx, machine, directory, progress(quiet=as_json)),
        target=given["target"],
        engine=tuple(_engine_arguments(ctx)),
        verify=given["verify_options"],
        validation=given["validation"],
        labels=labels,
        any_version=given["any_version"],
        keys=KeyChoice(given["trust"], given["key"]),
    )
    where = output or bundle.resolve().with_name(f"{bundle.resolve().name}.{host.rpartition('@')[2]}")
    result = build_there(machine, bundle, where, choice, progress(quiet=as_json))
    if as_json:
        print_json({"host": host, **asdict(result), "engines": [record.to_dict() for record in result.engines]})
    else:
        print_engines(bundle, result.engines)
        if result.report is not None:
            print_report(result.report, as_json=False)
            echo(f"report: {where / 'report.html'}")
    ctx.exit(0 if result.passed else 1)


def _edgeres(ctx: click.Context, machine: Host, directory: str, progress: Progress) -> tuple[str, ...]:
    """The command of edgeres on that machine, which is installed first where the user wants it."""
    python, given = ctx.params["python"], ctx.get_parameter_source("edgeres") is ParameterSource.COMMANDLINE
    if ctx.params["install"]:
        from edgeres.remote.install import install

        if given:
            what = "is installed, so there is no other command of it"
            raise UsageError(what, where="--edgeres", hint="leave out --edgeres or --install")
        return install(machine, directory, python, progress).edgeres
    return (python, "-m", "edgeres") if python else _words("--edgeres", ctx.params["edgeres"])


def _words(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"is not a command: {text} ({error})", where=option) from error


def _engine_arguments(ctx: click.Context) -> list[str]:
    """The engine options on the command line, as arguments for the other machine."""
    from edgeres.engine.engines import EngineChoice

    names = {*(field.name for field in fields(EngineChoice)), "form", "no_tune", "time_budget", "min_sqnr"}
    words: list[str] = []
    for parameter in ctx.command.params:
        name, flag = str(parameter.name), parameter.opts[0]
        if name in names and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = ctx.params[name]
            for one in value if isinstance(value, tuple) else (value,):
                words += [flag] if one is True else [flag, str(one)]
    return words
