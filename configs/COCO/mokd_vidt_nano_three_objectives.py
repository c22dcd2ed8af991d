"""MoKD with three objectives, distill, cls and box (Remark A.1): mokd_vidt_nano.py but for the objectives."""

from .mokd_vidt_nano import balancer, dataloader, lr_multiplier, model, optimizer, train

objectives = dict(distill=["loss_distill_*"], cls=["loss_ce*"], box=["loss_bbox*", "loss_giou*"])
train.output_dir = "output/mokd_vidt_nano_three_objectives"
