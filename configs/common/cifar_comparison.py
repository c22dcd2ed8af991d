"""The methods of cifar_methods.py for tools/compare_methods.py (--methods-file), each also under MoKD's balancer.

They fit any config with a ``choice.method``: those of CIFAR100/ and fashion_pairs/.
"""

from typing import Any

from .cifar_methods import amortized
from .cifar_methods import methods as entries

# What a method takes from a pair of networks is the config's to say: here these references stay what they are.
pair = {key: "\\${pair." + key + "}" for key in ("num_classes", "train_images")}
warmup_epochs: Any = dict(value="\\${warmup_epochs.value}")


def row(name: str, label: str, balancer: Any) -> dict[str, Any]:
    """One method of the comparison."""
    settings = {"choice.method": name}
    return dict(label=label, method=entries[name].method, balancer=balancer, settings=settings)


methods = {name: row(name, entry.label, entry.balancer) for name, entry in entries.items()}
# SRD's logarithm has none of its own; NoDistillation has nothing to balance; MoKD is amortised already
methods.update(
    {
        f"{name}_amortized": row(name, f"{entry.label}, amortised", amortized)
        for name, entry in entries.items()
        if name not in ("none", "srd", "mokd", "mokd_fixed")
    }
)
