"""A small D-FINE from random weights: docs/transformers.md."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from ..custom.transformers import balancer, images, model, objectives
from ..transformers_digits.common import detector
from .common import data, dataloader, from_data, lr_multiplier, optimizer, train

images.update(side=128)
model.source = detector("d_fine", 32, 2, levels=3, depth_mult=0.34, num_queries=50).source
dataloader.train.mapper.augmentation = [L(T.RandomFlip)(prob=0.5), L(T.Resize)(shape="${images.side}")]
dataloader.test.mapper.augmentation = [L(T.Resize)(shape="${images.side}")]

optimizer.lr = 2e-3
train.update(max_iter=600, eval_period=100, diagnostics_period=0, output_dir="output/photographs/d_fine")
