"""The cells of the comparisons with few images (docs/results.md): NAME@W gives a fixed weight, times the published one.

Where CNN teaches CNN the published taps fit; a transformer gives its last patch tokens as one map (``*_vit``), which
also MoKD and VkD can compare with the teacher's last one, without pooled features and logits (``*_maps_vit``).
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.balancing import Amortized
from mokd_det.distillation import CRD, FitNet, LogitDistillation, MoKD, NoDistillation, ReviewKD, VkD

from ..common.cifar_methods import with_logits
from ..common.classification import alone
from ..common.objectives import fixed as weighted

fixed = weighted(1)
both = ["pooled", "logits"]


def amortized(lr: float = 0.025, total: float = 1.0) -> Any:
    """MoKD's balancer; a step of SGD feels ``total``, one of AdamW does not."""
    return L(Amortized)(pi_optimizer="adamw", lr=lr, weight_decay=0.01, total=total)


def cell(
    label: str,
    method: Any,
    taps: dict[str, Any] | list[str],
    balancer: Any = fixed,
    published: dict[str, float] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """One method; ``published``: the weights of its terms, by the end of their names."""
    taps = taps if isinstance(taps, dict) else {name: name for name in taps}
    if published:
        distill = {f"loss_distill_{term}": weight for term, weight in published.items()}
        settings["objectives"] = dict(distill=distill, task=["loss_cls"])
    return dict(label=label, method=method, balancer=balancer, settings={"model.taps": taps, **settings})


features: Any = dict(
    similarity=("MoKD similarity", L(MoKD)(task="classification", loss="similarity")),
    regression=("MoKD regression", L(MoKD)(task="classification", loss="regression")),
    vkd=("VkD", L(VkD)(task="classification")),
)
similarity, regression, vkd = (with_logits(method) for _, method in features.values())
review_taps = dict(maps=dict(student="maps", teacher="pre"), pooled="pooled")
last_map = dict(maps=dict(path="maps", strides=[4]))
# both beds train on 200 images; of them a third are negatives, as published
crd = L(CRD)(num_samples=200)

methods = dict(
    none=cell("student alone", L(NoDistillation)(), [], alone.balancer),
    kd=cell("KD", L(LogitDistillation)(temperature=4.0), ["logits"]),
    fitnet=cell("FitNet", L(FitNet)(level=2), ["maps"], published=dict(hint=100.0)),
    fitnet_vit=cell("FitNet", L(FitNet)(level=-1), ["maps"], published=dict(hint=100.0)),
    review_kd=cell("ReviewKD", L(ReviewKD)(), review_taps),
    vkd=cell("VkD", vkd, both),
    crd=cell("CRD", crd, ["pooled"], published=dict(crd=0.8), **{"dataloader.train.negatives": 65}),
    similarity=cell("MoKD similarity, fixed", similarity, both),
    regression=cell("MoKD regression, fixed", regression, both),
)
for name, (label, method) in features.items():
    methods[f"{name}_maps_vit"] = cell(f"{label} on the last map, fixed", method, last_map)
    methods[f"{name}_maps_vit_amortized"] = cell(
        f"{label} on the last map, amortised", method, last_map, amortized()
    )
for name, method in (("similarity", similarity), ("regression", regression)):
    label = f"MoKD {name}"
    for total in (1.0, 2.0, 4.0):
        methods[f"{name}_total_{total:g}"] = cell(
            f"{label}, amortised, total {total:g}", method, both, amortized(total=total)
        )
    for lr in (0.006, 0.025, 0.1):
        methods[f"{name}_rate_{lr:g}"] = cell(
            f"{label}, amortised, rate {lr:g}", method, both, amortized(lr=lr)
        )
