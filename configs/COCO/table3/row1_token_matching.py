"""Table 3, row 1, token matching: ViDT-nano from ViDT-base on COCO. The rows differ in method and balancer only."""

from ..token_matching_vidt_nano import (
    balancer,
    dataloader,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

train.output_dir = "output/table3/row1_token_matching"
