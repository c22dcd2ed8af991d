"""The meta-architecture of student, frozen teacher and method."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from mokd_det.distillation import (
    DistillationBatch,
    Distiller,
    MoKD,
    NoDistillation,
    ProjectorMatching,
    TokenMatching,
    VkD,
)
from mokd_det.errors import CheckpointError, ConfigError, IncompatibleModelsError
from tests.forks import spawn

METHODS = [TokenMatching, VkD, MoKD, ProjectorMatching]


@pytest.fixture
def distiller(fake_detector) -> Distiller:
    return Distiller(fake_detector(channels=8), fake_detector(channels=12, dropout=0.5), MoKD())


def test_it_is_registered_and_built_by_a_lazy_config(fake_detector, batch) -> None:
    assert META_ARCH_REGISTRY.get("Distiller") is Distiller
    config = L(Distiller)(
        student=L(fake_detector)(channels=8),
        teacher=L(fake_detector)(channels=12),
        method=L(MoKD)(n=32),
        taps={
            "patch": "patch",
            "neck": {"student": "neck", "teacher": "taps.neck"},
            "head": {"path": "head"},
        },
    )
    config.method.high_dimensional = False
    config.method.n = None
    model = instantiate(config)
    assert set(model(batch)) == {
        "loss_bbox",
        "loss_ce",
        "loss_distill_patch",
        "loss_distill_neck",
        "loss_distill_head",
    }
    assert {head.n for head in model.method.heads.values()} == {12}


@pytest.mark.parametrize("make", METHODS)
def test_training_returns_the_students_losses_and_the_distillation_terms(make, fake_detector, batch) -> None:
    student = fake_detector()
    alone = student(batch)
    model = Distiller(student, fake_detector(), make())
    losses = model(batch)
    assert {k: v for k, v in losses.items() if not k.startswith("loss_distill_")} == alone
    terms = {k: v for k, v in losses.items() if k.startswith("loss_distill_")}
    assert len(terms) == (1 if make is TokenMatching else 3)
    sum(terms.values()).backward()
    assert student.queries.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.parameters())


def test_evaluation_is_the_students(distiller, batch) -> None:
    distiller.eval()
    expected = distiller.student(batch)
    teacher_calls = distiller.teacher.calls
    for inputs in (batch, DistillationBatch(batch)):
        for found, right in zip(distiller(inputs), expected, strict=True):
            assert torch.equal(found["boxes"], right["boxes"])
    assert distiller.teacher.calls == teacher_calls


def test_the_teacher_stays_frozen_in_eval_mode(distiller, batch) -> None:
    teacher = distiller.teacher
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller.train().eval()
    distiller.train()
    sum(distiller(batch).values()).backward()
    optimizer.step()
    distiller.requires_grad_(True)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    first, second = (distiller.prepare_batch(batch).teacher_taps for _ in range(2))
    assert torch.equal(first["head"], second["head"])


def test_the_teacher_is_no_submodule_but_follows_moves(distiller) -> None:
    assert all(module is not distiller.teacher for module in distiller.modules())
    teacher_tensors = {id(t) for t in [*distiller.teacher.parameters(), *distiller.teacher.buffers()]}
    assert not teacher_tensors & {id(t) for t in [*distiller.parameters(), *distiller.buffers()]}
    assert {key.split(".")[0] for key in distiller.state_dict()} == {"student", "method"}
    distiller.double()
    assert distiller.teacher.queries.dtype == torch.float64
    distiller.to("meta")
    assert distiller.teacher.queries.is_meta and distiller.teacher.norm.running_mean.is_meta


def test_the_exported_student_is_a_student_trained_alone(distiller, fake_detector, batch) -> None:
    alone = fake_detector(channels=8)
    sum(distiller(batch).values()).backward()
    exported = distiller.student.state_dict()
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in alone.state_dict().items()}
    alone.load_state_dict(exported)
    assert sum(p.numel() for p in distiller.student.parameters()) == sum(
        p.numel() for p in alone.parameters()
    )
    assert not any(m._forward_hooks for m in distiller.student.modules())


def test_a_prepared_batch_is_used_again_without_the_teacher(distiller, batch) -> None:
    prepared = distiller.prepare_batch(batch)
    assert distiller.teacher.calls == 1
    losses = distiller(prepared)
    with torch.no_grad():
        again = distiller(prepared)
    assert distiller.teacher.calls == 1
    for name, value in losses.items():
        torch.testing.assert_close(value, again[name])
        assert value.requires_grad and not again[name].requires_grad


def test_learned_teacher_projections_get_gradients_through_a_prepared_batch(distiller, batch) -> None:
    sum(distiller(distiller.prepare_batch(batch)).values()).backward()
    assert distiller.method.heads["neck"].teacher_projection.weight.grad.abs().sum() > 0


def test_the_students_taps_carry_the_graph_of_the_latest_forward(distiller, batch) -> None:
    losses = distiller(batch)
    taps = distiller.last_student_taps()
    assert [tuple(t.shape) for t in taps] == [(2, 8, 6, 8), (2, 8, 3, 4), (2, 5, 8), (3, 2, 5, 8)]
    for objective in (losses["loss_ce"], losses["loss_distill_patch"]):
        gradient = torch.autograd.grad(objective, taps, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in gradient)
    with torch.no_grad():
        distiller(batch)
    assert distiller.last_student_taps() == []
    distiller(batch)
    distiller.eval()(batch)
    assert distiller.last_student_taps() == []


def test_it_can_be_copied_after_a_forward(distiller, batch) -> None:
    distiller(batch)
    other = copy.deepcopy(distiller)
    assert other.last_student_taps() == []
    assert other.teacher is not distiller.teacher
    assert torch.equal(other.teacher.queries, distiller.teacher.queries)
    assert set(pickle.loads(pickle.dumps(distiller)).state_dict()) == set(distiller.state_dict())


def test_parameters_are_divided_into_shared_and_private(distiller) -> None:
    distiller.student.box.bias.requires_grad_(False)
    shared, private = distiller.shared_parameters(), distiller.private_parameters()
    assert {id(p) for p in shared + private} == {id(p) for p in distiller.parameters() if p.requires_grad}
    assert {id(p) for p in private} == {id(p) for p in distiller.method.parameters()}
    assert {id(p) for p in distiller.no_weight_decay_parameters()} == {id(p) for p in private}


def test_after_step_restores_orthogonality_and_diagnostics_tell(distiller, batch) -> None:
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=0.05)
    sum(distiller(batch).values()).backward()
    optimizer.step()
    assert distiller.diagnostics()["distill/neck/orthogonality_error"] > 1e-3
    distiller.after_step()
    numbers = distiller.diagnostics()
    assert numbers["distill/neck/orthogonality_error"] <= 1e-5
    assert 1 <= numbers["distill/neck/target_effective_rank"] <= 12


def test_the_taps_under_autocast_give_float32_losses(distiller, batch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distiller(batch)
    assert distiller.last_student_taps()[0].dtype == torch.bfloat16
    assert {v.dtype for k, v in losses.items() if "distill" in k} == {torch.float32}


def test_no_distillation_needs_no_teacher(fake_detector, batch) -> None:
    student = fake_detector()
    model = Distiller(student, None, NoDistillation())
    assert model(batch) == student(batch)
    assert model.private_parameters() == [] and model.teacher is None
    with_teacher = Distiller(student, fake_detector(), NoDistillation())
    with_teacher(batch)
    assert with_teacher.teacher.calls == 0


def test_incompatible_models_are_refused_at_construction(fake_detector) -> None:
    with pytest.raises(IncompatibleModelsError, match=r"\(B, 5, 8\).*\(B, 9, 8\)"):
        Distiller(fake_detector(), fake_detector(queries=9), MoKD())
    with pytest.raises(IncompatibleModelsError, match="same strides"):
        Distiller(fake_detector(), fake_detector(strides=(8, 16, 32)), VkD())
    Distiller(fake_detector(), fake_detector(queries=9), MoKD(), taps={"patch": "patch"})
    selected = {"patch": {"student": "patch", "teacher": {"path": "patch", "strides": [8, 16]}}}
    Distiller(fake_detector(), fake_detector(strides=(8, 16, 32)), VkD(), taps=selected)
    with pytest.raises(IncompatibleModelsError, match="Linear has no module 'patch'"):
        Distiller(nn.Linear(2, 2), fake_detector(), MoKD())


def test_wrong_arguments(fake_detector) -> None:
    with pytest.raises(ConfigError, match="MoKD needs a teacher"):
        Distiller(fake_detector(), None, MoKD())
    with pytest.raises(ConfigError, match="one and the same module"):
        model = fake_detector()
        Distiller(model, model, MoKD())
    with pytest.raises(ConfigError, match="'patch' needs a student and a teacher"):
        Distiller(fake_detector(), fake_detector(), MoKD(), taps={"patch": {"student": "patch"}})
    with pytest.raises(ConfigError, match="but teacher is None"):
        Distiller(fake_detector(), None, NoDistillation(), teacher_checkpoint="weights.pth")


def test_the_teachers_checkpoint(tmp_path, fake_detector) -> None:
    trained = fake_detector(channels=12)
    path = str(tmp_path / "teacher.pth")
    torch.save({"model": {**trained.state_dict(), "aux.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"1 unknown to the model \(aux\.weight\)"):
        Distiller(fake_detector(), fake_detector(channels=12), MoKD(), teacher_checkpoint=path)
    model = Distiller(
        fake_detector(),
        fake_detector(channels=12),
        MoKD(),
        teacher_checkpoint=path,
        ignore_teacher_keys=["aux.*"],
    )
    assert torch.equal(model.teacher.queries, trained.queries)
    with pytest.raises(CheckpointError, match=r"queries \[5, 12\] instead of \[5, 8\]"):
        Distiller(
            fake_detector(), fake_detector(), MoKD(), teacher_checkpoint=path, ignore_teacher_keys=["aux.*"]
        )


def test_students_that_return_no_losses_are_named(fake_detector, batch) -> None:
    class Listing(fake_detector):
        def forward(self, batched_inputs):
            return list(super().forward(batched_inputs).values())

    class Clashing(fake_detector):
        def forward(self, batched_inputs):
            return {**super().forward(batched_inputs), "loss_distill_neck": torch.zeros(())}

    with pytest.raises(IncompatibleModelsError, match=r"Listing\) returned a list in training"):
        Distiller(Listing(), fake_detector(), MoKD())(batch)
    with pytest.raises(IncompatibleModelsError, match="'loss_distill_neck' has the name"):
        Distiller(Clashing(), fake_detector(), MoKD())(batch)


def test_training_learns_what_the_teacher_knows(fake_detector, batch) -> None:
    model = Distiller(fake_detector(channels=8), fake_detector(channels=12), MoKD())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    values = []
    for _ in range(40):
        loss = sum(v for k, v in model(batch).items() if "distill" in k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


def _train_wrapped(rank: int, folder: str) -> None:
    distiller, batch = torch.load(f"{folder}/given.pt", weights_only=False)
    plain = copy.deepcopy(distiller)
    sum(plain(batch).values()).backward()
    wrapped = nn.parallel.DistributedDataParallel(distiller, broadcast_buffers=False)
    sum(wrapped(wrapped.module.prepare_batch(batch)).values()).backward()
    for alone, parallel in zip(plain.parameters(), distiller.parameters(), strict=True):
        torch.testing.assert_close(parallel.grad, alone.grad)


def test_it_trains_inside_a_data_parallel_wrapper(distiller, batch, tmp_path) -> None:
    torch.save((distiller, batch), tmp_path / "given.pt")
    spawn(_train_wrapped, tmp_path, 1)


def test_the_teacher_runs_in_inference_mode_and_its_taps_leave_it(distiller, batch) -> None:
    seen = []
    distiller.teacher.register_forward_hook(
        lambda module, inputs, output: seen.append(output[0]["boxes"].is_inference())
    )
    prepared = distiller.prepare_batch(batch)
    assert seen == [True]
    maps = [
        tensor for level in prepared.teacher_taps["patch"] for tensor in (level.tensor, level.padding_mask)
    ]
    assert not any(t.is_inference() for t in (*maps, *(prepared.teacher_taps[n] for n in ("neck", "head"))))
