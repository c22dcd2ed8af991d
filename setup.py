"""Package metadata. Tool settings: pyproject.toml. The tested version of every package: constraints.txt."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def package_version() -> str:
    """Returns ``mokd_det.__version__`` without an import, which would need the dependencies."""
    source = (ROOT / "mokd_det" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('mokd_det/__init__.py must hold a line __version__ = "X.Y.Z"')
    return found.group(1)


def long_description() -> str:
    """README.md, without links to files of the checkout: the wheel has no docs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^\[\]]+)\]\((?!\w+:)[^()\s]+\)", r"\1", text)


class BuildWithConfigs(build_py):
    """Also packs what stands elsewhere in the checkout where mokd_det.model_zoo finds it: configs, results' records."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "mokd_det" / "model_zoo"
            for name, source in (("configs", "configs"), ("records", "docs/results/records")):
                shutil.copytree(
                    ROOT / source,
                    target / name,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__"),
                )


setup(
    name="mokd_det",
    version=package_version(),
    description="Multi-objective knowledge distillation (MoKD) for detectors, as a Detectron2 extension",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["mokd_det", "mokd_det.*"]),
    package_data={"mokd_det": ["py.typed", "model_zoo/weights/*.safetensors", "report/templates/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        # In no registry under its own name: docs/install.md tells the two ways to it.
        "detectron2",
        "fvcore>=0.1.5.post20221221",
        "hydra-core>=1.1",
        "iopath>=0.1.7",
        "jinja2>=3.1",
        "matplotlib>=3.7",
        "numpy>=1.24",
        "omegaconf>=2.1,<2.4",
        "opencv-python>=4.8",
        "pillow>=9.5",
        "pycocotools>=2.0.7",
        "pyyaml>=5.1",
        "safetensors>=0.4",
        "scikit-learn>=1.3",
        "scipy>=1.10",
        "tabulate>=0.9",
        "tidecv>=1.0.1",
        "timm>=1.0.9",
        "torch>=2.4",
        "torchvision>=0.19",
        "yacs>=0.1.8",
    ],
    extras_require={
        "balancers": ["torchjd[cagrad,fairgrad,quadprog-projector]>=0.18"],
        "evaluation": ["hotcoco>=1.3"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18"],
        "slurm": ["submitit>=1.5"],
        # The site is built with one Python.
        "docs": [
            f"{name} ; python_version >= '3.11'"
            for name in (
                "ipykernel>=6",
                "mkdocs-material>=9.5",
                "mkdocstrings[python]>=0.25",
                "nbclient>=0.10",
            )
        ],
        "trackers": ["mlflow-skinny>=2.20", "wandb>=0.19"],
        # Up to 5.17 RT-DETR and D-FINE computed the main loss over denoising queries too.
        "transformers": ["transformers>=5.19"],
        "dev": ["hypothesis>=6.100", "mypy>=1.11", "pytest>=9", "pytest-xdist>=3.6", "ruff>=0.9"],
    },
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
