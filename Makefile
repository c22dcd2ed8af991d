# `make help` lists the commands. Each sets up what it needs first; what is done is not done again.
#
#   VENV=DIR           the environment to use (default .venv). One of your own is kept as it is and only completed.
#   PY=3.12            the Python to build a new environment with: a version, or the path of an interpreter.
#   SYSTEM_SITE=1      let a new environment see (and prefer) the packages that this Python already has.
#   PYTEST_ARGS=...    more options for pytest.
#   MUTATION_ARGS=...  more options for tests.mutation.run, such as '--sample 40'.

SHELL := /bin/bash
VENV ?= .venv
# An environment remembers what it was built with: PY and SYSTEM_SITE need be given once.
-include $(VENV)/.mokd_det-environment
PY ?=
SYSTEM_SITE ?=
PYTEST_ARGS ?=
MUTATION_ARGS ?=

PYTHON := $(VENV)/bin/python
# The slowest part of a test is PyTorch: one thread each, one process per core. A process that dies is a failed test; with
# a new one in its place, xdist would wait for the tests of the file for ever.
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n auto --dist loadfile --max-worker-restart 0

# Two stamps, named after what they stand for: the packages in the environment, and this checkout linked into it.
RECIPE := $(addprefix third_party/detectron2/,pyproject.toml build_backend.py METADATA NOTICE)
PINS := constraints.txt setup.py tools/setup_venv.sh $(RECIPE)
digest = $(shell { $(1); } | sha256sum | cut -c1-16)
PACKAGES_STAMP := $(VENV)/.packages-$(call digest,cat $(PINS); echo '$(PY) $(SYSTEM_SITE)')
CHECKOUT_STAMP := $(VENV)/.checkout-$(call digest,cat setup.py pyproject.toml mokd_det/__init__.py; pwd)

.PHONY: help setup demo demo-teacher demo-classification compare-quick docs docs-pictures test test-slow test-gpu test-browser mutation \
  lint format print-pins rooms clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' Makefile
	@sed -n '/^# *[A-Z_]*=/s/^#/ /p' Makefile

setup: $(CHECKOUT_STAMP) ## make the environment (.venv, 6 GB, minutes)

$(PACKAGES_STAMP): | $(PINS)
	@rm -f $(VENV)/.packages-* $(VENV)/.checkout-*
	@tools/setup_venv.sh '$(VENV)' '$(PY)' '$(SYSTEM_SITE)'
	@touch $@ $(CHECKOUT_STAMP)

$(CHECKOUT_STAMP): | $(PACKAGES_STAMP)
	@if [ ! -e $@ ]; then rm -f $(VENV)/.checkout-*; \
	  $(PYTHON) -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation -e .; touch $@; fi

demo: setup ## the main job on bundled data: student alone and student with MoKD, from a shipped teacher
	$(PYTHON) tools/quickstart.py --output output/demo

FEW_SCENES := output/demo_teacher
demo-teacher: setup ## train the two weights anew that the demo starts from (mokd_det/model_zoo/weights; minutes)
	DETECTRON2_DATASETS=$(FEW_SCENES)/datasets $(PYTHON) datasets/make_digits.py digits --train 12000 --test 1000
	DETECTRON2_DATASETS=$(FEW_SCENES)/datasets $(PYTHON) datasets/make_digits.py digits_few --train 8000 --test 1000
	for run in pretrain:pretrained:190 teacher:teacher:191; do IFS=: read -r config name seed <<< "$$run"; \
	  DETECTRON2_DATASETS=$(FEW_SCENES)/datasets OMP_NUM_THREADS=1 $(PYTHON) tools/train_net.py \
	    --config-file configs/few_scenes/$$config.py train.seed=$$seed dataloader.train.seed=$$seed \
	    train.output_dir=$(FEW_SCENES)/$$config && \
	  $(PYTHON) tools/convert_checkpoint.py $(FEW_SCENES)/$$config/student_final.pth \
	    mokd_det/model_zoo/weights/few_scenes_$$name.safetensors --to safetensors --half || exit; done

demo-classification: setup ## the same for classifiers of single digits, with plain distillation and VkD beside MoKD
	$(PYTHON) tools/quickstart.py --task classification --output output/demo_classification

compare-quick: setup ## student alone, token matching, VkD and MoKD on bundled data, 4 replicates (an hour or two)
	$(PYTHON) datasets/make_digits.py digits
	$(PYTHON) tools/compare_methods.py --config configs/quickstart/mokd.py \
	  --methods-file configs/common/quickstart_methods.py --methods none token_matching vkd mokd --replicates 4 \
	  --tuning "six to ten trials per method on the validation images, see configs/common/quickstart_methods.py" \
	  --set train.eval_period=50 \
	  --teacher-config configs/quickstart/teacher.py --teacher-cache \
	  --test-dataset digits_test --output output/compare

docs: setup ## the documentation site, strictly, into output/site
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict # not --quiet: it would hide warnings from --strict

docs-pictures: setup ## make the pictures of docs/tools.md anew, from what the demo has left; needs Chromium
	$(PYTHON) docs/make_pictures.py

test: setup ## the tests, without the slow ones
	$(PYTEST) $(PYTEST_ARGS)

test-slow: setup ## the slow tests
	$(PYTEST) -m 'slow and not gpu' -o faulthandler_timeout=7200 $(PYTEST_ARGS)

test-gpu: setup ## the tests that need a CUDA device
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -m gpu $(PYTEST_ARGS)

test-browser: setup ## the report's page in a real browser; needs Chromium
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/report/browser_check.py $(PYTEST_ARGS)

mutation: setup ## change lines of balancing/ and distillation/ and see whether their tests notice (an hour; output/mutation)
	@mkdir -p output/mutation; failed=; for room in balancing distillation; do \
	  OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m tests.mutation.run mokd_det/$$room --tests tests/$$room \
	    --output output/mutation/$$room.txt $(MUTATION_ARGS) || failed="$$failed $$room"; \
	done; if [ -n "$$failed" ]; then echo "error: too many changes went unnoticed in$$failed" >&2; exit 1; fi

rooms: ## lines per room
	@python3 -m tests.rooms

lint: setup ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: setup ## lay the code out with ruff
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

print-pins: ## list the files that the environment is made from
	@echo $(PINS)

clean: ## remove caches and build products
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## the same and the environment .venv
	rm -rf .venv
