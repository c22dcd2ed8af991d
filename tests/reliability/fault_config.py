"""The toy run, slow where a test wants it, and with checkpoints that take a moment to write."""

from detectron2.config import LazyCall as L

from tests.engine.toy import ToyDetector
from tests.reliability.toys import Slow

from ..engine.toy_config import balancer, lr_multiplier, objectives, optimizer, train  # noqa: F401

model = L(ToyDetector)(width=1000, dropout=0.3)
dataloader = dict(train=L(Slow)(total_batch_size=4, seconds=0.0, wait_at=None, signal_file=""))
train["max_iter"] = 8
train["checkpointer"] = dict(period=1, max_to_keep=None)
train["log_period"] = 1
