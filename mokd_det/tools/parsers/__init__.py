"""The command lines of :mod:`mokd_det.tools`, one module each with ``parse(arguments)``.

They import nothing that takes time: --help and a wrong argument are answered before torch is there.
"""
