"""Table 3, row 4, + high-dimensional alignment (mokd_vidt_nano.py again): ViDT-nano from ViDT-base on COCO."""

from ..mokd_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.high_dimensional = model.method.metric = True
train.output_dir = "output/table3/row4_high_dimensional"
