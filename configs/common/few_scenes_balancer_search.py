"""The search of the amortised weights for docs/results.md: ten settings of the balancer for each of four losses."""

from typing import Any

from .few_scenes_methods import methods as cells

# What differs from the default; `total` is none of them, AdamW does not notice it.
trials: Any = {
    "default": {},
    "slow": dict(lr=0.0025),
    "fast": dict(lr=0.25),
    "relative": dict(improvement="relative"),
    "relative_fast": dict(improvement="relative", lr=0.25),
    "quarter": dict(pi_min=0.25),
    "quarter_fast": dict(pi_min=0.25, lr=0.25),
    "decay": dict(weight_decay=1.0),
    "adam": dict(pi_optimizer="adam"),
    "every_tenth": dict(update_every=10),
}
methods: Any = {}
for name in ("similarity", "standardized", "vkd", "token_matching"):
    cell = cells[f"{name}_amortized"]
    for trial, changes in trials.items():
        said = ", ".join(f"{key}={value}" for key, value in changes.items()) or "default"
        methods[f"{name}_{trial}"] = {
            **cell,
            "label": f"{cell['label']}, {said}",
            "balancer": {**cell["balancer"], **changes},
        }
