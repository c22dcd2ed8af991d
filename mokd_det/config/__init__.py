"""Configurations: reading a file, changing it from the command line, and what the ``train`` section may hold.

Every mistake is one line that names the key and what would be right, before anything is built.
"""

from mokd_det.config.config_file import REQUIRED_KEYS, load_config
from mokd_det.config.override_text import as_override
from mokd_det.config.overrides import apply_overrides
from mokd_det.config.train_settings import TrainSettings

__all__ = ["REQUIRED_KEYS", "TrainSettings", "apply_overrides", "as_override", "load_config"]
