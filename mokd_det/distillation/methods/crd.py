"""Contrastive representation distillation (Tian et al., ICLR 2020)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils.comm import get_world_size
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_known
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.vectors import vector_pair
from mokd_det.errors import ConfigError

__all__ = ["CRD", "bank_scores"]

_EPS = 1e-7


class CRD(Method):
    """Tells an image's own embedding from those of N images of other classes, across the models.

    Both models' vectors are embedded linearly in ``dim`` dimensions (the teacher's too is trained) and set to length 1;
    a bank keeps the embedding of every training image for each model. With u the embedding of an image by one model and
    v_j row j of the other's bank, scores p_j = exp(⟨v_j, u⟩ / τ) / Z and c = N / n,

        crd = Σ_directions mean over images of −log(p_i / (p_i + c)) − Σ_negatives log(c / (p_j + c))

    Z, one per direction, is n times the first batch's mean score, constant from then on. After each optimiser step the
    images' rows become unit(momentum · row + (1 − momentum) · embedding). Published: weight 0.8, N = 16384.

    The banks are buffers, hence part of checkpoints; in data-parallel training every process has all of them, and the
    processes tell each other their rows. Batches must carry ``indices`` and ``negatives``.

    Args:
        num_samples: n, images in the training set.
        dim: of the embeddings.
        temperature: τ.
        momentum: of the bank's rows.

    Raises:
        ConfigError: a number out of range.
    """

    tap_kinds = {"pooled": "vectors"}
    bank_s: Tensor
    bank_t: Tensor
    normalizer: Tensor

    def __init__(
        self, num_samples: int, *, dim: int = 128, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        if num_samples < 2:
            raise ConfigError(f"CRD: num_samples={num_samples}; it is the number of training images")
        if not temperature > 0 or not 0 <= momentum < 1:
            raise ConfigError(
                f"CRD: temperature={temperature} must be above 0 and momentum={momentum} in [0, 1)"
            )
        self.num_samples, self.dim = num_samples, dim
        self.temperature, self.momentum = temperature, momentum
        bound = 1 / math.sqrt(dim / 3)
        self.register_buffer("bank_s", torch.empty(num_samples, dim).uniform_(-bound, bound))
        self.register_buffer("bank_t", torch.empty(num_samples, dim).uniform_(-bound, bound))
        # 0: not fixed yet
        self.register_buffer("normalizer", torch.zeros(2))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def build_for(self, student: Specs, teacher: Specs) -> None:
        self.embed_s = nn.Linear(student["pooled"].channels[0], self.dim)
        self.embed_t = nn.Linear(teacher["pooled"].channels[0], self.dim)

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        z_s, z_t = vector_pair("pooled", student, teacher)
        indices = require_known("CRD", context, "indices")
        negatives = require_known("CRD", context, "negatives")
        rows = torch.cat((indices[:, None], negatives), 1)  # (B, 1 + N)
        self._check_range(rows)
        u_s, u_t = F.normalize(self.embed_s(z_s), dim=1), F.normalize(self.embed_t(z_t), dim=1)
        scores = [
            (bank_scores(bank, u, rows) / self.temperature).exp()
            for bank, u in ((self.bank_t, u_s), (self.bank_s, u_t))
        ]
        constant = self._fixed_normalizer(torch.stack([score.detach().mean() for score in scores]))
        if torch.is_grad_enabled():
            # Kept until the step is taken. A forward may be repeated: by the balancer without gradients, or by a hook
            # with them; the same batch counts once.
            others = [seen for seen in self._seen if seen[0] is not indices]
            self._seen = [*others, (indices, u_s.detach(), u_t.detach())]
        terms = [
            self._contrast(score / z, negatives.shape[1]) for score, z in zip(scores, constant, strict=True)
        ]
        return {"crd": torch.stack(terms).sum()}

    def _check_range(self, rows: Tensor) -> None:
        # On a GPU an index out of range fails by itself; asking there would wait for the device in every step.
        if rows.device.type == "cpu" and (int(rows.max()) >= self.num_samples or int(rows.min()) < 0):
            raise ConfigError(
                f"CRD: num_samples={self.num_samples}, but a batch has position "
                f"{int(rows.max() if int(rows.min()) >= 0 else rows.min())}; it must be the number of training images"
            )

    def _fixed_normalizer(self, mean: Tensor) -> Tensor:
        """Z (2,), fixed now if it is not yet."""
        fresh = mean * self.num_samples
        if get_world_size() > 1:
            # Every process does so in every step: whether Z is fixed is known on the device only.
            dist.all_reduce(fresh)
            fresh = fresh / get_world_size()
        fixed = torch.where(self.normalizer > 0, self.normalizer, fresh.to(self.normalizer))
        with torch.no_grad():
            self.normalizer.copy_(fixed)
        return fixed

    def _contrast(self, probabilities: Tensor, count: int) -> Tensor:
        noise = count / self.num_samples
        positive, negative = probabilities[:, :1], probabilities[:, 1:]
        log_positive = (positive / (positive + noise + _EPS)).log()
        log_negative = (noise / (negative + noise + _EPS)).log()
        return -(log_positive.sum() + log_negative.sum()) / len(probabilities)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the banks' rows of the images that the step has seen."""
        super().after_step()
        for seen in self._seen:
            indices, *embeddings = (_from_all(tensor) for tensor in seen)
            for bank, embedding in zip((self.bank_s, self.bank_t), embeddings, strict=True):
                old = bank[indices]
                moved = self.momentum * old + (1 - self.momentum) * embedding.to(bank)
                # A step that was skipped for its overflow leaves its embeddings behind.
                usable = moved.isfinite().all(1, keepdim=True)
                bank.index_copy_(0, indices, torch.where(usable, F.normalize(moved, dim=1), old))
        self._seen.clear()


def bank_scores(bank: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """⟨bank[rows[b, j]], vectors[b]⟩ for all b and j.

    Gathering B · (1 + N) rows of the bank takes 537 MB for CIFAR-100's published setting. Where they are more numbers
    than all scores of the batch, the whole bank is multiplied instead and the scores are gathered: 13 MB there.

    Args:
        bank: (n, d), constant.
        vectors: (B, d).
        rows: (B, M) int64, positions in the bank.

    Returns:
        (B, M).
    """
    bank = bank.to(vectors.dtype)
    if rows.shape[1] * bank.shape[1] < bank.shape[0]:
        return torch.einsum("bmd,bd->bm", bank[rows], vectors)
    return (vectors @ bank.T).gather(1, rows)


def _from_all(tensor: Tensor) -> Tensor:
    """The rows of all processes, in their order."""
    if get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
