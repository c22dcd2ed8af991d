"""A test bed of distillation in which the student has converged: few labelled scenes, a pretrained student.

The student starts from a detector that was pretrained without classes (``pretrain.py``) and gets 160 scenes of three
digits; the teacher has learned from 4,000. docs/results.md says how it was chosen and what it shows.
"""

from ..common.objectives import alone
from ..quickstart.common import dataloader, lr_multiplier, optimizer, train, vidt

student, teacher = vidt(8, (1, 1, 1, 1), 128), vidt(16, (1, 1, 1, 1), 128)
student.num_classes = teacher.num_classes = 3

dataloader.train.dataset = "digits_few_train"
dataloader.test.dataset = "digits_few_val"

train.max_iter = 300
train.eval_period = 75
train.conflict_period = 0
train.diagnostics_period = 0
optimizer.lr = 4e-3
optimizer.fused = True
