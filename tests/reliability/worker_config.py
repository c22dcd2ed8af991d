"""The toy run with a loading process that dies over one image."""

from detectron2.config import LazyCall as L

from mokd_det.data import build_train_loader
from tests.reliability.toys import KillsItsProcess, records

from .fault_config import balancer, lr_multiplier, model, objectives, optimizer, train  # noqa: F401

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(records)(count=16), mapper=L(KillsItsProcess)(image_id=3), total_batch_size=4, num_workers=1
    )
)
