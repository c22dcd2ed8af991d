"""Table 3, row 3, + multi-task optimisation: ViDT-nano from ViDT-base on COCO."""

from ..mokd_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.high_dimensional = model.method.metric = False
train.output_dir = "output/table3/row3_multi_task"
