"""The decoders of RT-DETR, RT-DETRv2, D-FINE and DEIMv2, run with queries of somebody else's choice."""

from __future__ import annotations

from torch import Tensor, nn

from mokd_det.layers import inverse_sigmoid
from mokd_det.modeling.query_decoder import Queries, QueryDecoder

__all__ = ["HybridDecoder"]


class HybridDecoder(QueryDecoder):
    """References are boxes, of which the decoder makes the positions; a point gets the size of the nearest own query.

    D-FINE and DEIMv2 answer with their last level alone in evaluation, and in training with the first layer's boxes
    before the refinement as a level more.

    Args:
        decoder: of transformers.
        count: own queries; denoising queries stand before them.
    """

    def __init__(self, decoder: nn.Module, count: int) -> None:
        super().__init__(decoder, int(decoder.config.d_model), takes_position=False)
        self._count = count

    @property
    def queries(self) -> Queries:
        named = self.recorded[1]
        content, reference = (named[key][:, -self._count :] for key in ("inputs_embeds", "reference_points"))
        return Queries(content, reference.sigmoid())

    def __call__(self, queries: Queries) -> tuple[Tensor, Tensor]:
        reference = queries.reference
        if reference.shape[-1] == 2:
            reference = self.queries_at(reference).reference
        named = {
            **self.recorded[1],
            "inputs_embeds": queries.content,
            "reference_points": inverse_sigmoid(reference),
            "encoder_attention_mask": None,  # keeps denoising queries apart, of which there are none here
        }
        output = self._module(**named)
        levels = output.intermediate_logits, output.intermediate_reference_points
        logits, boxes = (of_levels.transpose(0, 1) for of_levels in levels)
        return logits, boxes
