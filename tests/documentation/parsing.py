"""Command lines read by the programs' own parsers, and the configurations that they name."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mokd_det.__main__ import COMMANDS
from mokd_det.config import load_config
from mokd_det.experiments.method_grid import read_methods
from tests.documentation.pages import ROOT, commands

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = re.compile(r"\[([\w,]+)\]")


class _Parsed(BaseException):
    """A parser has read its arguments; the program ends before it does anything."""


@contextmanager
def _stop_after_parsing() -> Iterator[list[argparse.Namespace]]:
    """The program's parser reads the arguments, then :class:`_Parsed` is raised; the list has what it read."""
    found: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any, **keywords: Any) -> None:
        found.append(parse(self, *arguments, **keywords))
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_Parsed):
            yield found


def tool_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of ``mokd_det.tools`` that a command starts, and its arguments."""
    if words[:3] == ["python", "-m", "mokd_det"] and words[3:]:
        return COMMANDS[words[3]], words[4:]
    if words[0] == "python" and (found := re.fullmatch(r"(?:tools|datasets)/(\w+)\.py", words[1])):
        assert (ROOT / words[1]).is_file(), words
        return found[1], words[2:]
    return None


def parsed(words: list[str]) -> tuple[str, argparse.Namespace | None]:
    """A command read by the parser of what it starts.

    Returns:
        The name of the tool, and what its parser made of the arguments; None for other programs.

    Raises:
        SystemExit: the parser refuses the command.
        AssertionError: there is no such program, file or target.
    """
    # R stands for the number of a machine.
    words = ["0" if word == "R" else word for word in words]
    program, arguments = Path(words[0]).name, words[1:]
    if (tool := tool_of(words)) is not None:
        return tool[0], importlib.import_module(f"mokd_det.tools.parsers.{tool[0]}").parse(tool[1])
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(arguments)
        return parsed(["python", given.training_script, *given.training_script_args])
    if program in ("python", "python3.10"):
        _check_python(arguments)
    elif program == "pip":
        _check_pip(arguments)
    elif program == "make":
        targets = [word for word in arguments if "=" not in word]
        variables = [word.split("=")[0] for word in arguments if "=" in word]
        assert set(targets) <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)), words
        assert set(variables) <= set(re.findall(r"^#   ([A-Z_]+)=", MAKEFILE, re.MULTILINE)), words
    elif program == "pytest":
        assert [word for word in arguments if (ROOT / word).exists()], words
    else:
        raise AssertionError(f"{words}: unknown program '{program}'")
    return program, None


def _check_python(arguments: list[str]) -> None:
    """``python -c``, a benchmark, or a module that parses its arguments."""
    if arguments[0] == "-c":
        compile(arguments[1], "python -c", "exec")
    elif arguments[:2] in (["-m", "venv"], ["-m", "mokd_det"]):
        assert len(arguments) == (3 if arguments[1] == "venv" else 2), arguments
    elif arguments[0] == "-m":
        with _stop_after_parsing():
            importlib.import_module(arguments[1]).main(arguments[2:])
    else:
        assert re.fullmatch(r"benchmarks/\w+\.py", arguments[0]), arguments
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ROOT / "benchmarks")
            patch.setattr(sys, "argv", arguments)
            module = importlib.import_module(Path(arguments[0]).stem)
            with _stop_after_parsing() as found:
                module.main()
        if (config := getattr(found[0], "config_file", None)) is not None:
            load_config(ROOT / config)


def _check_pip(arguments: list[str]) -> None:
    """pip's own parser; files of the checkout and extras that it installs are there."""
    # Before pip: where pip is imported first, setuptools cannot be imported in this process any more (Python < 3.12),
    # and torch's environment report, which every training writes, imports it.
    import setuptools  # noqa: F401
    from pip._internal.commands import create_command

    options, names = create_command(arguments[0]).parse_args(arguments[1:])
    known = set(re.findall(r'^ {8}"(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    for text in [*names, *options.editables]:
        for extras in EXTRAS.findall(text):
            assert set(extras.split(",")) <= known, (text, known)
        if text.startswith("./"):
            assert (ROOT / text).exists(), text
    for file in options.constraints:
        assert (ROOT / file).is_file(), file


def resolve(name: str, options: argparse.Namespace | None) -> None:
    """Load the configurations that a command names, with its overrides.

    Those that an earlier command writes, below ``output``, are left to the running of the commands.

    Raises:
        ConfigError: a configuration or a method that is not there, or a setting that it does not take.
    """
    if options is None:
        return
    if name == "submit":
        return resolve(*parsed(["python", "tools/train_net.py", *options.training]))
    if name == "train_net":
        load_config(options.config_file, options.opts, training=not options.eval_only)
    elif name == "compare_methods" and not options.records:
        for config in options.config:
            load_config(config, options.set)
        if options.teacher_config is not None:
            load_config(options.teacher_config, options.teacher_set)
        read_methods(options.methods_file, options.methods)
    elif name in ("analyze_model", "export"):
        config = options.config_file
        if config is not None and not config.startswith("output/"):
            load_config(config, options.set)


def recipe(target: list[str]) -> list[list[str]]:
    """The commands of tools and data sets that ``make TARGET`` runs, as a page would print them."""
    done = subprocess.run(
        [*target, "--dry-run", "VENV=/none"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    own = [line for line in lines if re.match(r"/none/bin/python (tools|datasets)/\w+\.py ", line)]
    return [command for line in own for command in commands(line.replace("/none/bin/", "", 1))]
