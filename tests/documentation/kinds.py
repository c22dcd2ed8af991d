"""What each block of the documentation is, and what is done with it. A block that is none of these is an error.

- ``python``: run, by ``test_run.py`` or by the test of :data:`RUN_BY`, or lines of a file (:data:`EXCERPTS`).
- ``bash``, commands: parsed by the program's own parser, their configurations resolved, and run by ``test_run.py``
  unless :data:`NOT_RUN` says why not; or arguments, applied to the configuration of :data:`ARGUMENTS_OF`.
- ``text``: what a command prints (:data:`PRINTED_BY`), or drawings and formulas (:data:`DRAWN`).
"""

from __future__ import annotations

import re

from tests.documentation.pages import Block, commands

# Page → the test that runs its Python.
RUN_BY = {
    "docs/balancing.md": "tests/balancing/test_documentation.py",
    "docs/extending.md": "tests/test_docs_extending.py",
    "docs/methods.md": "tests/distillation/test_documentation.py",
    "docs/transformers.md": "tests/config_room/test_transformers_configs.py",
}

# First line of a block of Python → the file whose lines it shows.
EXCERPTS = {
    "model = L(Distiller)(": "configs/ImageNet/timm_pair.py",
}

# Page → the configuration that its blocks of arguments change.
ARGUMENTS_OF = {
    "docs/balancing.md": "configs/quickstart/mokd.py",
    "docs/classification.md": "configs/CIFAR100/distill.py",
    "docs/methods.md": "configs/quickstart/mokd.py",
    "docs/reliability.md": "configs/quickstart/mokd.py",
    "docs/tools.md": "configs/quickstart/mokd.py",
}

# First line of a block of text → the command of its page that prints it, or None: test_run.py's own check.
PRINTED_BY = {
    "model       80 classes    91 classes    Table 1": "python tools/analyze_model.py --all-variants",
    "ViDT, 269,503 parameters, 3 classes (0, 1, 2)": "python tools/export.py",
    "micro-batch 0: id 1216 'datasets/digits/train/001216.png', …": "python tools/replay_batch.py",
    "error: checkpoint 'vidt_tiny.pth' does not fit: this file looks like ViDT-tiny (91 classes, "
    "100 queries, 6 decoder": None,
}

# First lines of blocks that nothing can check.
DRAWN = {
    "images, annotations ── data/ ──► batch",
    "datasets/",
    "tckd = T² KL(b_y^t ‖ b_y^s),    nckd = T² Σ_{c≠y} KL(b_c^t ‖ b_c^s)",
    "work     = images × 2 × multiply-adds × (3 student + 1 teacher + 1/update_every student)",
    "π* = argmin over Δ of ½ ‖Σ π_i g_i‖²,        g* = Σ π_i* g_i                                     (Eq. 9)",
    "min(‖g_1‖, ‖g_2‖) · cos(θ/2)  ≤  ‖g*‖  ≤  min(‖g_1‖, ‖g_2‖). ✓",
    "a_i = (π_i / D_i) / Σ_j (π_j / D_j),        update Σ a_i ∇L_i.",
    "δ_i = log D_i(θ) − log D_i(θ') ≈ η (Jᵀ J π)_i,",
    "‖Σ π_i ∇_θ log L_i‖  ≤  ‖∂z/∂θ‖ · ‖Σ π_i ∂ log L_i / ∂z‖.",
}

# Commands that are parsed and not run → why.
NOT_RUN = {
    r"--num-gpus|^torchrun|--nodes": "several GPUs or machines",
    r"train_net.py .*configs/(ImageNet|CIFAR100)/": "data that no test has",
    r"configs/fashion_pairs/": "Fashion-MNIST, which does not come with the project",
    r"^make compare-quick|compare .*--draw": "hours; comparisons are run for docs/tools.md and the tutorials",
    r"compare .*few_labels": "an hour of a core",
    r"fetch\.py": "a network; its own tests give it an archive",
    r"^(\S*pip|python3\.10) ": "the environment would be another one",
    r"^make (test|setup)\b": "the tests themselves, and what they run in",
    r"replay_batch.py output/run/": "a batch that a real training refused; docs/tools.md makes one",
    r"benchmarks/methods.py": "minutes of timing; tests/benchmarks runs the programs",
    r"draw=\{count: 1000": "a thousand scenes; the place of these tests has forty",
    r"plot_frontier.py RUN ": "the search's runs, whose weights are not kept; docs/tools.md runs the tool",
    r"mokd_transformers.py": "run by tests/config_room/test_transformers_configs.py",
}


def is_arguments(block: Block) -> bool:
    """Whether a ``bash`` block holds arguments of a command instead of commands."""
    return bool(re.match(r"[\w.]+=", commands(block.text)[0][0]))


def kind(block: Block) -> str:
    """The one kind of a block.

    Raises:
        ValueError: it has none, or more than one.
    """
    first = block.first_line
    found = {
        "bash": ["arguments" if block.language == "bash" and is_arguments(block) else "commands"],
        "python": ["excerpt" if first in EXCERPTS else "code"],
        "text": [name for name, table in (("printed", PRINTED_BY), ("drawn", DRAWN)) if first in table],
    }.get(block.language, [])
    if len(found) != 1:
        raise ValueError(f"{block}, '{first}', language '{block.language}': kinds {found}, must be one")
    return found[0]


def reason_not_to_run(words: list[str]) -> str | None:
    """Why a command is parsed only; None: it is run."""
    line = " ".join(words)
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)
