"""Write a trained student for use elsewhere: as ONNX, as TorchScript, as plain weights.

The command line: :mod:`mokd_det.tools.parsers.export`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import MetadataCatalog
from torch import nn

from mokd_det.checkpoint import export_student, write_file
from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.data.catalog import load_classes
from mokd_det.engine.inference_model import InferenceModel, load_inference_model, student_section
from mokd_det.errors import ConfigError, DatasetError, ExportError
from mokd_det.export import (
    DetectorGraph,
    TransformersGraph,
    describe,
    inference_graph,
    measure_agreement,
    onnx_bytes,
    onnx_runner,
    photographs,
    torchscript_bytes,
    torchscript_runner,
)
from mokd_det.export.agreement import Runner
from mokd_det.tools import command
from mokd_det.tools.parsers import export as reader


def export(options: argparse.Namespace) -> None:
    """Build, write and compare.

    Raises:
        MoKDError: a mistake in the input, or a model that cannot be exported.
    """
    logging.getLogger("mokd_det").setLevel(logging.WARNING)
    loaded = load_inference_model(options.config_file, options.weights, [*options.set, "train.device=cpu"])
    names = class_names(loaded)
    about = partial(
        describe,
        loaded.model,
        student_section(loaded.cfg),
        class_names=names,
        resize=resize_rule(loaded),
        weights=Path(options.weights).name,
    )
    graph: DetectorGraph | TransformersGraph | None = None
    graph_about: dict[str, str] = {}
    # What cannot be exported is said before anything is written.
    if any(output.suffix != ".safetensors" for output in options.outputs):
        graph = inference_graph(loaded.model, options.deformable_attention)
        graph_about = about(deformable_attention=options.deformable_attention)
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(f"{type(loaded.model).__name__}, {count:,} parameters, {described(names)}")
    for output in options.outputs:
        make_parent(output)
        if graph is None or output.suffix == ".safetensors":
            weights = export_student({"model": loaded.model.state_dict()})["model"]
            write_file(weights, output, about(graph=False))
            finding = f"{len(weights)} tensors, for train.init_checkpoint"
        else:
            finding = write_graph(loaded.model, graph, output, graph_about, options)
        print(f"{output}: {output.stat().st_size / 1e6:.1f} MB; {finding}", flush=True)


def write_graph(
    model: nn.Module,
    graph: DetectorGraph | TransformersGraph,
    output: Path,
    about: dict[str, str],
    options: argparse.Namespace,
) -> str:
    """Write an ONNX or TorchScript file; returns what the comparison found.

    Raises:
        ExportError: the model cannot be translated, or the graph finds something else than the model does.
    """
    runner: Callable[[bytes], Runner]
    if output.suffix == ".onnx":
        content, runner = onnx_bytes(graph, about, opset=options.opset), onnx_runner
        form = f"opset {options.opset}, {options.deformable_attention}"
    else:
        content, runner = torchscript_bytes(graph, about), torchscript_runner
        form = options.deformable_attention
    finding = "not compared with the model"
    if not options.no_check:
        batches = [photographs(sizes) for sizes in graph.check_sizes]
        # A Hugging Face model is compared without its own resizing, which is no part of the graph.
        reference = graph.model if isinstance(graph, TransformersGraph) else model
        agreement = measure_agreement(reference, runner(content), batches, options.tolerance)
        finding = str(agreement)
        if not agreement.within(options.tolerance):
            raise ExportError(
                f"'{output}' is not written: its graph does not find what the model finds ({finding}; allowed are "
                f"{options.tolerance:g})"
            )
    try:
        with atomic_write(output) as handle:
            handle.write(content)
    except OSError as error:
        raise ExportError(f"'{output}' could not be written: {error}") from error
    return f"{form}; {finding}"


def make_parent(output: Path) -> None:
    """Make the folder of a file.

    Raises:
        ExportError: it cannot be made.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"the folder of '{output}' cannot be made: {error}") from error


def class_names(loaded: InferenceModel) -> list[str] | None:
    """Names of the model's classes, from the data set of its configuration; None: they are not known here."""
    if loaded.dataset is None:
        return None
    names = MetadataCatalog.get(loaded.dataset).get("thing_classes")
    if names is None:
        try:
            load_classes(loaded.dataset)
        except DatasetError as error:
            print(f"The class names are not known: {error}", file=sys.stderr)
            return None
        names = MetadataCatalog.get(loaded.dataset).get("thing_classes")
    wanted = getattr(loaded.model, "num_classes", len(names or ()))
    if names is not None and len(names) != wanted:
        print(
            f"The class names are left out: data set {loaded.dataset!r} has {len(names)}, the model {wanted} classes",
            file=sys.stderr,
        )
        return None
    return None if names is None else list(names)


def described(names: Sequence[str] | None) -> str:
    """The class names in a few words."""
    if names is None:
        return "class names unknown"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} classes ({shown})"


def resize_rule(loaded: InferenceModel) -> str:
    """What the configuration's evaluation does to an image before the model sees it; "": it does not say."""
    try:
        mapper = loaded.build_mapper()
    except ConfigError:
        return ""
    steps = getattr(getattr(mapper, "augmentation", None), "augs", None)
    if steps is None:
        return f"as {type(mapper).__name__} does"
    return "; ".join(map(repr, steps)) or "none"


main = command(reader, export)
