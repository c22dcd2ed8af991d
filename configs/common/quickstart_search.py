"""The trials of the search that configs/common/quickstart_methods.py is the result of; docs/results.md has the command
and what each reached. ``_lr2`` is a learning rate of 2e-3, ``_lr4`` of 4e-3."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import MoKD, NoDistillation, TokenMatching, VkD

from .objectives import alone, fixed, mokd

FORMS = dict(
    similarity={},
    regression=dict(loss="regression", bias=True),
    standardized=dict(loss="regression", norm="standardize", student_norm="after", bias=True),
)

methods = {}
for rate, mark in ((2e-3, "lr2"), (4e-3, "lr4")):
    settings = {"optimizer.lr": rate}
    for decay in (0.001, 0.01, 0.1):
        methods[f"none_wd{decay:g}_{mark}"] = dict(
            label=f"alone, decay {decay:g}, {mark}",
            method=L(NoDistillation)(),
            balancer=alone.balancer,
            settings={**settings, "optimizer.params.weight_decay": decay},
        )
    for weight in (1 / 16, 1 / 4, 1, 4, 16):
        for name, label, method in (("tm", "token matching", TokenMatching), ("vkd", "VkD", VkD)):
            methods[f"{name}_{weight:g}_{mark}"] = dict(
                label=f"{label}, {weight:g}, {mark}",
                method=L(method)(),
                balancer=fixed(weight),
                settings=settings,
            )
    for form, options in FORMS.items():
        methods[f"mokd_{form}_{mark}"] = dict(
            label=f"MoKD, {form}, {mark}",
            method=L(MoKD)(**options),
            balancer=mokd.balancer,
            settings=settings,
        )
