"""The commands, one module each with ``main(arguments) -> exit status``: ``python -m mokd_det NAME``."""
