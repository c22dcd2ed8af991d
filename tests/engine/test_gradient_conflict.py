from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import get_event_storage
from torch import Tensor

from mokd_det.balancing import Amortized, Balancer, ClosedForm, FixedWeights, GradNorm
from mokd_det.balancing.conflict import gram_scalars
from mokd_det.config import load_config
from mokd_det.contract.parameter_parts import split_by_part
from mokd_det.engine import AtomicCheckpointer
from mokd_det.engine.gradient_conflict import GradientConflict
from mokd_det.errors import ConfigError
from mokd_det.visualization import dynamics_figure, read_run
from tests.config_room.test_config import CONFIG
from tests.engine import gradient_conflict_runs
from tests.engine.gradient_conflict_runs import BALANCERS, measured, trained
from tests.engine.helpers import differences, make_trainer, snapshot
from tests.engine.test_train_net import run_here
from tests.engine.toy import Recorder, ToyDetector, ToyLoader
from tests.forks import launch

ROOT = Path(__file__).parents[2]
PARTS = ("backbone", "heads")
DISTILL = {"distill": ["loss_distill_*"], "task": ["loss_ce", "loss_bbox", "loss_extra"]}


def toy(dropout: float = 0.3, norm: bool = True) -> ToyDetector:
    torch.manual_seed(0)
    return ToyDetector(dropout=dropout, norm=norm)


def with_hook(
    balancer: Balancer | None = None, *, groups=None, period: int = 1, iterations: int = 1, **options
):
    trainer = make_trainer(balancer, **options)
    trainer.register_hooks([GradientConflict(period, groups)])
    trainer.train(0, iterations)
    return trainer


def values(trainer, iteration: int = 0) -> dict[str, float]:
    return {
        name: value for name, history in measured(trainer).items() for value, i in history if i == iteration
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Tensor]]:
    """Group → objective → log-gradient; and the model's gradient of the weighted sum, and the update."""
    model = toy(dropout=0.0, norm=False)
    losses = model(next(iter(ToyLoader())))
    objectives = {"cls": losses["loss_ce"], "box": losses["loss_bbox"] + losses["loss_extra"]}
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = 3.0 * objectives["cls"] + objectives["box"]
    vectors = {
        **{
            f"{kind}{name}": torch.autograd.grad(
                loss.log() if kind else loss, parameters, retain_graph=True, allow_unused=True
            )
            for name, loss in objectives.items()
            for kind in ("", "log ")
        },
        "step": torch.autograd.grad(total, parameters, retain_graph=True),
    }
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    total.backward()
    optimizer.step()
    vectors["update"] = [old - new for old, new in zip(before, parameters, strict=True)]
    groups: dict[str, dict[str, Tensor]] = {}
    for group in ("all", *PARTS):
        members = [i for i, name in enumerate(names) if group == "all" or name.startswith(f"{group}.")]
        groups[group] = {
            name: torch.cat(
                [
                    (torch.zeros_like(parameters[i]) if vector[i] is None else vector[i]).detach().flatten()
                    for i in members
                ]
            ).double()
            for name, vector in vectors.items()
        }
    return groups


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    weights = FixedWeights({"cls": 3.0, "box": 1.0})
    clip = {"max_norm": 0.5, "norm_type": 2.0}
    # A decoy: clipping changes .grad after the measurement. AdamW's first step does not feel a common factor.
    return values(with_hook(weights, model=toy(dropout=0.0, norm=False), clip_grad=clip))


class TestNumbers:
    """Against ``torch.autograd.grad`` on a copy of the model."""

    @pytest.mark.parametrize("group", ["all", *PARTS])
    @pytest.mark.parametrize("kind", ["raw", "log"])
    def test_conflict_and_dominance_of_the_raw_gradients_and_of_the_logarithms(
        self, expected, found, group, kind
    ):
        cls, box = (expected[group][f"{'log ' if kind == 'log' else ''}{name}"] for name in ("cls", "box"))
        inner, norms = cls @ box, (cls.norm(), box.norm())
        assert found[f"{kind}_inner_product/cls_box/{group}"] == pytest.approx(
            float(inner), rel=1e-4, abs=1e-7
        )
        assert found[f"cosine/cls_box/{group}"] == pytest.approx(float(inner / norms[0] / norms[1]), abs=1e-5)
        assert found[f"{kind}_norm_ratio/cls_box/{group}"] == pytest.approx(
            float(norms[0] / norms[1]), rel=1e-5
        )

    def test_the_logarithms_can_turn_dominance_round(self):
        """L = (1, 4) with gradients (1, 2): the first is half as long, its logarithm's twice."""
        gram = torch.tensor([[1.0, 1.2], [1.2, 4.0]], dtype=torch.float64)
        scalars = gram_scalars(gram, ["a", "b"], torch.tensor([1.0, 4.0], dtype=torch.float64))
        found = {name: float(value) for name, value in scalars.items()}
        assert found == pytest.approx(
            {
                "cosine/a_b": 0.6,
                "raw_inner_product/a_b": 1.2,
                "raw_norm_ratio/a_b": 0.5,
                "log_inner_product/a_b": 0.3,
                "log_norm_ratio/a_b": 2.0,
            }
        )

    @pytest.mark.parametrize("group", ["all", *PARTS])
    @pytest.mark.parametrize("name", ["cls", "box"])
    def test_alignment_with_the_gradient_and_with_the_step(self, expected, found, group, name):
        for kind, vector in (("alignment", "step"), ("update_alignment", "update")):
            cosine = torch.cosine_similarity(expected[group][name], expected[group][vector], dim=0)
            assert found[f"{kind}/{name}/{group}"] == pytest.approx(float(cosine), abs=1e-3), kind

    def test_nothing_else_is_stored(self, found):
        of_pairs = [f"{kind}_{what}" for kind in ("raw", "log") for what in ("inner_product", "norm_ratio")]
        pairs = [f"{kind}/cls_box" for kind in ("cosine", "conflict_share", *of_pairs)]
        single = [f"{kind}/{name}" for kind in ("alignment", "update_alignment") for name in ("cls", "box")]
        assert set(found) == {f"{name}/{group}" for name in (*pairs, *single) for group in ("all", *PARTS)}


@pytest.mark.parametrize("balancer", [FixedWeights, Amortized, ClosedForm, GradNorm])
@pytest.mark.parametrize(
    "options", [{}, {"amp": {"dtype": "float16"}, "accumulate": 2}], ids=["plain", "fp16 x 2"]
)
def test_the_training_is_bit_equal_with_and_without(balancer, options):
    class Logging(ToyDetector):
        def forward(self, batched_inputs):
            if self.training:
                get_event_storage().put_scalar("seen", len(batched_inputs))
            return super().forward(batched_inputs)

    def run(hook: bool):
        torch.manual_seed(0)
        clip = {"max_norm": 0.5, "norm_type": 2.0}
        trainer = make_trainer(balancer(), model=Logging(), clip_grad=clip, **options)
        if (
            trainer.precision.scaler is not None
        ):  # the first scale is too large: its step would be skipped and not measured
            scaler = {**trainer.precision.scaler.state_dict(), "scale": 128.0}
            trainer.load_state_dict({**trainer.state_dict(), "grad_scaler": scaler})
        trainer.register_hooks([GradientConflict(2)] if hook else [])
        trainer.train(0, 6)
        seen = trainer.storage.history("seen").values()
        return trainer, snapshot(trainer), torch.get_rng_state(), seen

    (trainer, on, rng_on, seen_on), (_, off, rng_off, seen_off) = run(True), run(False)
    iterations = [iteration for _, iteration in measured(trainer)["cosine/cls_box/all"]]
    assert iterations == [1, 3, 5]
    assert trainer.module.norm.num_batches_tracked == 6 * options.get("accumulate", 1)
    assert on.pop("hooks")
    assert differences(on, off) == []
    assert torch.equal(rng_on, rng_off)
    assert seen_on == seen_off, "a model that logs from its forward logs nothing more"


def test_gradients_are_the_same_tensors_afterwards():
    trainer = make_trainer(model=toy())
    seen = {}

    class Look(HookBase):
        def __init__(self, when: str) -> None:
            self.when = when

        def after_backward(self) -> None:
            grads = [parameter.grad for parameter in self.trainer.module.parameters()]
            seen[self.when] = [(grad, grad.clone()) for grad in grads]

    trainer.register_hooks([Look("before"), GradientConflict(1), Look("after")])
    trainer.train(0, 1)
    for (before, value), (after, _) in zip(seen["before"], seen["after"], strict=True):
        assert after is before and torch.equal(after, value)


def test_a_closed_form_balancer_keeps_its_own_log():
    trainer = with_hook(ClosedForm(), model=toy())
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert latest["cosine/cls_box"] == pytest.approx(latest["cosine/cls_box/all"], abs=1e-6)
    for kind in ("raw_norm_ratio", "log_norm_ratio", "raw_inner_product"):
        assert latest[f"{kind}/cls_box"] == pytest.approx(latest[f"{kind}/cls_box/all"], rel=1e-5)


def test_the_min_norm_direction_is_aligned_with_every_objective():
    found = values(with_hook(ClosedForm(), model=toy()))
    assert found["alignment/cls/all"] > 0 and found["alignment/box/all"] > 0


@pytest.mark.parametrize("balancer", BALANCERS)
def test_micro_batches_equal_one_big_batch(balancer):
    big, _ = trained(balancer, total_batch_size=8)
    halves, _ = trained(balancer, total_batch_size=4, accumulate=2)
    for iteration in range(3):
        expected = values(big, iteration)
        assert values(halves, iteration) == pytest.approx(expected, rel=2e-3, abs=1e-3)


def test_the_loss_scale_is_not_in_the_numbers():
    def run(scale: float | None) -> dict[str, float]:
        trainer = make_trainer(model=toy(), amp=None if scale is None else {"dtype": "float16"}, lr=1e-3)
        if scale is not None:
            trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.register_hooks([GradientConflict(1)])
        trainer.train(0, 1)
        return values(trainer)

    single, half, scaled = run(None), run(1.0), run(64.0)
    assert half != single
    for found in (half, scaled):
        assert {n: v for n, v in found.items() if "update" not in n} == pytest.approx(
            {n: v for n, v in single.items() if "update" not in n}, rel=0.05, abs=0.02
        )


def test_a_gradient_that_overflows_is_left_out_and_not_counted():
    # The loss is finite, but its gradient times the scale of 65536 is not: the step is skipped.
    loader = ToyLoader(poison={index: {"loss_bbox": 1e35} for index in range(4, 8)})
    trainer = make_trainer(model=toy(norm=False), loader=loader, amp={"dtype": "float16"})
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    hook = GradientConflict(1)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    assert {"cosine/cls_box/all", "update_alignment/cls/all"} <= set(values(trainer, 0))
    assert "cosine/cls_box/all" not in values(trainer, 1)
    assert not any(name.startswith("update_alignment/") for name in values(trainer, 1))
    assert hook.state_dict()["counts"]["cls_box/all"][1] == 1


def test_an_objective_that_does_not_reach_a_group_is_left_out():
    groups = {"ce": ["heads.ce.*"], "box": ["heads.bbox.*", "heads.extra.*"]}
    found = values(with_hook(model=toy(), groups=groups))
    assert {name for name in found if name.endswith(("/ce", "/box")) and "update" not in name} == {
        "alignment/cls/ce",
        "alignment/box/box",
    }
    assert {"cosine/cls_box/all", "cosine/cls_box/rest"} <= set(found), "what no pattern names is the rest"


def test_an_objective_without_a_logarithm_has_its_raw_gradient():
    loader = ToyLoader(poison={0: {"loss_bbox": -100.0}})
    trainer = with_hook(FixedWeights(), model=toy(dropout=0.0), loader=loader)
    found = values(trainer)
    assert trainer.storage.latest()["loss_bbox"][0] < 0
    assert "cosine/cls_box/all" in found and "alignment/box/all" in found
    assert "raw_norm_ratio/cls_box/all" in found and "raw_inner_product/cls_box/all" in found
    assert not any(name.startswith("log_") for name in found)
    model = toy(dropout=0.0)
    losses = model(next(iter(loader)))
    gradients = [
        torch.autograd.grad(loss, model.backbone.weight, retain_graph=True)[0].flatten()
        for loss in (losses["loss_ce"], losses["loss_bbox"] + losses["loss_extra"])
    ]
    cosine = torch.cosine_similarity(*gradients, dim=0)
    assert found["cosine/cls_box/backbone"] == pytest.approx(float(cosine), abs=1e-3)


def test_the_share_of_conflicts_counts_every_measurement_also_across_a_resume(tmp_path):
    def run(start: int, stop: int, resume: bool = False):
        trainer = make_trainer(Amortized(), lr=0.05)
        hook = GradientConflict(1)
        trainer.register_hooks([hook])
        checkpointer = AtomicCheckpointer(trainer.module, str(tmp_path), trainer=trainer)
        if resume:
            checkpointer.resume()
        trainer.train(start, stop)
        trainer.iter = stop - 1
        return trainer, hook, checkpointer

    whole, hook, _ = run(0, 12)
    cosines = [value for value, _ in measured(whole)["cosine/cls_box/norm"]]
    shares = [value for value, _ in measured(whole)["conflict_share/cls_box/norm"]]
    negative = [value < 0 for value in cosines]
    assert True in negative and False in negative
    assert shares == [sum(negative[: n + 1]) / (n + 1) for n in range(12)]
    _, _, checkpointer = run(0, 5)
    checkpointer.save("model_0000004", iteration=4)
    resumed, continued, _ = run(5, 12, resume=True)
    assert continued.state_dict() == hook.state_dict()
    assert [value for value, _ in measured(resumed)["conflict_share/cls_box/norm"]] == shares[5:]


def test_a_distillers_private_parameters_are_not_measured():
    torch.manual_seed(0)
    model = Recorder()
    trainer = with_hook(Amortized(), model=model, patterns=DISTILL)
    assert {name.rpartition("/")[2] for name in values(trainer)} == {"all", "norm", *PARTS}
    # Neither does the distillation reach the heads, nor the task the method's projection.
    assert "cosine/distill_task/heads" not in values(trainer)
    assert trainer.storage.latest()["conflict_time"][0] > 0


def test_the_time_of_a_measurement_is_in_no_other_part():
    class Slow(GradientConflict):
        def _measure_gradients(self) -> None:
            time.sleep(0.3)
            super()._measure_gradients()

    trainer = make_trainer(model=toy())
    trainer.register_hooks([Slow(1)])
    trainer.train(0, 1)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert latest["conflict_time"] >= 0.3
    assert latest["conflict_time"] > latest["student_time"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert launch(gradient_conflict_runs.train_on_each_rank, 2, args=(str(folder),)) == 0
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


class TestTwoProcesses:
    @pytest.mark.parametrize("balancer", BALANCERS)
    def test_numbers_are_equal_on_all_ranks_and_those_of_the_joint_batch(self, ranks, balancer):
        first, second = (rank[balancer]["measured"] for rank in ranks)
        assert first == second
        assert len(first) > 12
        joint, _ = trained(balancer, total_batch_size=8)
        for iteration in range(3):
            own = {name: value for name, history in first.items() for value, i in history if i == iteration}
            assert own == pytest.approx(values(joint, iteration), rel=2e-3, abs=1e-3)

    @pytest.mark.parametrize("balancer", BALANCERS)
    def test_training_is_bit_equal_with_and_without(self, ranks, balancer):
        for rank in ranks:
            assert differences(rank[balancer]["with"], rank[balancer]["without"]) == []
        assert differences(ranks[0][balancer]["with"], ranks[1][balancer]["with"]) == []

    def test_one_ranks_data_alone_would_give_something_else(self, ranks):
        alone, _ = trained("fixed", total_batch_size=4)
        found = ranks[0]["fixed"]["measured"]["cosine/cls_box/all"][0][0]
        assert abs(values(alone)["cosine/cls_box/all"] - found) > 1e-2


class TestGroups:
    def test_a_vidt_has_backbone_neck_and_head(self):
        vidt = instantiate(load_config(str(ROOT / "configs/quickstart/student.py")).model)
        names, parameters = zip(*vidt.named_parameters(), strict=True)
        groups = split_by_part(vidt, parameters)
        assert list(groups) == ["backbone", "neck", "head"]
        parts = {group: {names[i].partition(".")[0] for i in of_group} for group, of_group in groups.items()}
        assert parts == {
            "backbone": {"backbone"},
            "neck": {"input_proj", "tgt_proj", "query_pos_proj", "transformer"},
            "head": {"class_embed", "bbox_embed"},
        }
        assert sorted(i for of_group in groups.values() for i in of_group) == list(range(len(names)))

    def test_the_first_matching_group_counts(self):
        model = toy()
        names, parameters = zip(*model.named_parameters(), strict=True)
        groups = split_by_part(model, parameters, {"ce": ["heads.ce.*"], "heads": ["heads.*"]})
        assert [names[i] for i in groups["ce"]] == ["heads.ce.weight", "heads.ce.bias"]
        assert len(groups["heads"]) == 4 and len(groups["rest"]) == 4

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            (
                {"a": ["bakbone.*"]},
                "conflict_groups.a: no parameter matches 'bakbone.*'; their names start with",
            ),
            ({"a": []}, "train.conflict_groups.a has no patterns"),
            ({"all": ["*"]}, "'all' is the name of a built-in group"),
        ],
    )
    def test_mistakes_show_before_the_first_step(self, groups, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            with_hook(model=toy(), groups=groups, period=1000)


class TestConfiguration:
    def test_a_run_writes_what_plot_dynamics_draws(self, tmp_path):
        run_here(tmp_path, "train.conflict_period=2", "train.conflict_groups={trunk: [backbone.*, norm.*]}")
        records = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
        with_cosines = [record for record in records if "cosine/cls_box/trunk" in record]
        assert [record["iteration"] for record in with_cosines] == [1, 3, 5, 7, 9, 11]
        assert all(
            math.isfinite(v)
            for r in with_cosines
            for n, v in r.items()
            if n.startswith(gradient_conflict_runs.KINDS)
        )
        figure = dynamics_figure([read_run(tmp_path)])
        legends = {
            axes.get_ylabel().partition("\n")[0]: [
                t.get_text().partition(":")[0] for t in axes.get_legend().get_texts()
            ]
            for axes in figure.axes
        }
        rows = [
            "Inner product, all",
            *(
                f"{title}, {group}"
                for title in ("Conflict", "Dominance")
                for group in ("all", "rest", "trunk")
            ),
            "Dominance, logarithms, all",
        ]
        assert list(legends)[-8:] == rows
        assert all(legends[row] == ["cls ↔ box"] for row in rows)

    def test_it_is_off_by_default_and_for_a_single_objective(self, tmp_path):
        for number, overrides in enumerate(([], ["train.conflict_period=2", "objectives={all: [loss_*]}"])):
            run_here(tmp_path / str(number), "train.max_iter=2", *overrides)
            assert "conflict_time" not in (tmp_path / str(number) / "metrics.json").read_text()

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.conflict_period=-1", "train.conflict_period is -1; it must be 0 or more"),
            ("train.conflict_period=0.5", "train.conflict_period is 0 (int), not of type float"),
            ("train.conflict_groups=3", "train.conflict_groups is a mapping, not of type int"),
            (
                "train.conflict_groups.head=heads.*",
                "train.conflict_groups.head is 'heads.*'; it must be a list",
            ),
            ("train.conflict_groups.head=3", "train.conflict_groups.head is 3; it must be a list"),
        ],
    )
    def test_mistakes_are_named(self, override, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_config(CONFIG, [override])
