"""A fifth of BCCD's labels at 160 pixels (docs/results.md): as few_labels.py, with twice the photographs."""

from .few_labels import balancer, from_data, lr_multiplier, model, objectives, optimizer
from .forty_labels_teacher import data, dataloader, train

model.teacher_checkpoint = "output/forty_labels/teacher/student_final.pth"
dataloader.train.update(draw=dict(count=40, seed=0), views=16)
train.update(max_iter=400, eval_period=200, output_dir="output/forty_labels/mokd")
