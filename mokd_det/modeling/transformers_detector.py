"""Hugging Face's detectors with Detectron2's inputs and outputs, and the taps of a distillation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from mokd_det.contract import TrainingTask
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers import TapPoint, cxcywh_to_xyxy, xyxy_to_cxcywh
from mokd_det.modeling.postprocess import as_instances, original_sizes, top_predictions
from mokd_det.modeling.query_decoder import QueryDecoder
from mokd_det.modeling.transformers_decoder import HybridDecoder
from mokd_det.modeling.transformers_family import IMAGENET_MEAN, IMAGENET_STD, Family
from mokd_det.modeling.transformers_source import Source, load_detector, quiet
from mokd_det.modeling.transformers_taps import READERS, class_logits, recorded

__all__ = ["TransformersDetector"]

logger = logging.getLogger(__name__)

_PREDICTORS = ("class_embed", "bbox_embed", "_head.", "class_labels_classifier", "bbox_predictor")


@dataclass(frozen=True)
class Inspection:
    """What :meth:`TransformersDetector.inspect` found.

    Attributes:
        output: of transformers' model.
        logits: (B, N, K), their sigmoid is the class's probability.
        boxes: (B, N, 4) cxcywh relative to each image.
        canvas: (height, width) of the model's input.
        sizes: (height, width) of each image in it.
    """

    output: Any
    logits: Tensor
    boxes: Tensor
    canvas: tuple[int, int]
    sizes: list[tuple[int, int]]


@META_ARCH_REGISTRY.register()
class TransformersDetector(TrainingTask):
    """Any detector of ``transformers.AutoModelForObjectDetection`` as a Detectron2 model.

    The detector itself is ``detector``: its ``state_dict()`` is transformers' own. Losses are the weighted ones, whose
    sum is the model's own loss; they are computed in float32 whatever the forward is. Taps (``taps.*``): ``patch``,
    ``neck``, ``head``, ``logits``, ``boxes``, see :mod:`mokd_det.modeling.transformers_taps`.

    Sizes: families without a padding mask (RT-DETR, D-FINE, DEIMv2, YOLOS) and those with windows (LW-DETR, RF-DETR)
    get fixed squares, to which images of another size are resized here; the others get the batch padded, with a mask.

    Args:
        source: a folder of ``save_pretrained``, a configuration with ``model_type`` (random weights), or a hub id.
        class_names: of the contiguous classes; None: the source's.
        num_classes: where names are not known; None: the source's.
        on_class_mismatch: if a folder has other classes: "error", or "reinit": its class heads start afresh, and the
            log says at the first training step which tensors (unless a checkpoint has brought them).
        image_size: side or (height, width) that every image is resized to; None: no resizing; "auto": as the folder's
            processor says, else the family's.
        pixel_mean, pixel_std: of RGB in 0..1; None: as the folder's processor says, else the family's.
        freeze_batch_norm: every BatchNorm keeps its statistics, gain and bias.
        topk: detections per image; None: as transformers' post-processing has it.
        allow_download: take a hub id and fetch what is missing; HF_HUB_OFFLINE is respected.

    Raises:
        ConfigError: a source that is no detector, other classes, or a size that the model cannot take.
        CheckpointError: weights that are missing or do not fit.
    """

    def __init__(
        self,
        source: Source,
        *,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        on_class_mismatch: Literal["error", "reinit"] = "error",
        image_size: int | Sequence[int] | Literal["auto"] | None = "auto",
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        freeze_batch_norm: bool = False,
        topk: int | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__()
        model, family, processor, self._fresh = load_detector(
            source, class_names, num_classes, on_class_mismatch, allow_download
        )
        config = model.config
        self.detector, self.family = model, family
        self.num_classes = int(config.num_labels)
        self.class_names = tuple(str(config.id2label[index]) for index in range(self.num_classes))
        self._reader = READERS[family.style](model, family)
        specs, self.num_queries = self._reader.specs(), self._reader.queries
        self.topk = topk or family.detections or self.num_queries
        self.taps = nn.ModuleDict({name: TapPoint(spec) for name, spec in specs.items()})
        self.image_size = _image_size(family, config, processor, image_size)
        self._check_cells()
        mean, std = _statistics(family, processor, pixel_mean, pixel_std)
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        model.loss_function = _FullPrecision(model.loss_function)
        self._freeze_unused()
        self.freeze_batch_norm = freeze_batch_norm
        if freeze_batch_norm:
            for module in self._batch_norms():
                module.requires_grad_(False)
        self._sum_checked = False
        self.train(self.training)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> TransformersDetector:
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self._batch_norms():
                module.eval()
        return self

    def _check_cells(self) -> None:
        """Families whose queries start from the best cells of the maps need as many cells as queries."""
        config = self.detector.config
        picks = self.family.style in ("hybrid", "grouped") or getattr(config, "two_stage", False)
        if self.image_size is None or not picks:
            return
        height, width = self.image_size
        strides = self._reader.strides
        cells = sum(-(-height // stride) * -(-width // stride) for stride in strides)
        if cells < self.num_queries:
            raise ConfigError(
                f"image_size={height}×{width}: the maps (strides {', '.join(map(str, strides))}) have {cells} "
                f"cells, of which {config.model_type} picks {self.num_queries} for its queries; take larger images"
            )

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (m for m in self.detector.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._fresh = {k: v for k, v in self._fresh.items() if f"{prefix}detector.{k}" not in state_dict}

    def _report_fresh(self) -> None:
        """At the first training step: a checkpoint may have brought the class heads that the folder did not have."""
        for name, reason in self._fresh.items():
            logger.warning("%s: re-initialised %s: %s", type(self.detector).__name__, name, reason)
        self._fresh = {}

    def _freeze_unused(self) -> None:
        """Parameters that no loss reaches: left trainable, they would stop data-parallel training."""
        patterns = ["embeddings.mask_token"]
        config = self.detector.config
        if self.family.style == "deformable" and config.two_stage:
            last = config.decoder_layers
            # transformers' two-stage loss has no encoder term, and the proposals are detached.
            patterns += [f"class_embed.{last}.", f"bbox_embed.{last}.", "model.enc_output"]
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad and any(pattern in name for pattern in patterns):
                parameter.requires_grad_(False)
                logger.info("%s: no loss reaches %s; it is frozen", type(self.detector).__name__, name)

    def parameter_parts(self) -> Mapping[str, Sequence[str]]:
        """Backbone, head (what predicts classes and boxes) and neck (encoder, decoder and all between)."""
        return {
            "backbone": ("*.backbone.*", "*.conv_encoder.model.*", "detector.vit.*"),
            "head": tuple(f"*{kind}*" for kind in _PREDICTORS),
            "neck": ("*",),
        }

    def query_decoder(self) -> QueryDecoder | None:
        """For running the decoder with other queries: RT-DETR's, D-FINE's and DEIMv2's."""
        if self.family.style != "hybrid":
            return None
        return HybridDecoder(self.detector.get_submodule("model.decoder"), self.num_queries)

    def missing_tap_hint(self, name: str) -> str:
        """Where a wrong path was probably meant to point."""
        try:
            self.detector.get_submodule(name)
        except AttributeError:
            return ""
        return f"the detector's own modules are under 'detector.', so 'detector.{name}'"

    # --- Detectron2's formats ----------------------------------------------------------------------------------

    def forward(
        self, batched_inputs: Sequence[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Detectron2's interface, see :meth:`mokd_det.modeling.ViDT.forward`.

        The losses have transformers' names and weights, and their sum is its loss.
        """
        if self.training and self._fresh:
            self._report_fresh()
        pixels, padding, stretched = self.preprocess(batched_inputs)
        labels = self.labels(batched_inputs) if self.training else None
        output = self._run(pixels, padding, labels, stretched)
        if labels is not None:
            return self._losses(output)
        logits, boxes = self._reader.predictions(output)
        return self.postprocess(logits, boxes, batched_inputs)

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor | None, bool]:
        """Resize where the model needs it, normalise, pad.

        Returns:
            pixels (B, 3, H, W), the padding mask (B, H, W) bool, True on padding (None: the model takes none, or there
            is none), and whether an image was resized.

        Raises:
            ConfigError: images of several sizes for a model that knows no padding.
        """
        images = [item["image"].to(self.device, non_blocking=True) for item in batched_inputs]
        given = [tuple(image.shape[-2:]) for image in images]
        if self.image_size is not None:
            images = [_resized(image, self.image_size, self.family.antialias) for image in images]
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = self._canvas(sizes)
        whole = all(size == (height, width) for size in sizes)
        shape = (len(images), 3, height, width)
        pixels = self.pixel_mean.new_empty(shape) if whole else self.pixel_mean.new_zeros(shape)
        padding = None
        if self.family.masks and not whole:
            mask = torch.ones(len(images), height, width, dtype=torch.bool)
            for row, (h, w) in zip(mask, sizes, strict=True):
                row[:h, :w] = False
            padding = mask.to(self.device, non_blocking=True)
        for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
            row[:, :h, :w].copy_(image).sub_(self.pixel_mean).div_(self.pixel_std)
        return pixels, padding, given != sizes

    def _canvas(self, sizes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
        height, width = (max(side) for side in zip(*sizes, strict=True))
        divisor = self.family.divisor(self.detector.config)
        padded = [-(-side // divisor) * divisor for side in (height, width)]
        if self.family.is_square(self.detector.config):
            padded = [max(padded)] * 2
        if not self.family.masks and any(size != tuple(padded) for size in sizes):
            raise ConfigError(
                f"{type(self.detector).__name__} knows no padding: all images of a batch need one size, of multiples "
                f"of {divisor} pixels, but this one has {', '.join(sorted({f'{h} × {w}' for h, w in sizes}))}; let "
                f"image_size resize them"
            )
        return padded[0], padded[1]

    def labels(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Ground truth in transformers' form; boxes are relative to each unpadded image."""
        labels = []
        for item in batched_inputs:
            instances = item["instances"]
            height, width = instances.image_size
            boxes = instances.gt_boxes.tensor.to(self.device, torch.float32, non_blocking=True)
            scale = boxes.new_tensor([width, height, width, height])
            classes = instances.gt_classes.to(self.device, torch.int64, non_blocking=True)
            labels.append({"class_labels": classes, "boxes": xyxy_to_cxcywh(boxes) / scale})
        return labels

    def _run(
        self,
        pixels: Tensor,
        padding: Tensor | None,
        labels: list[dict[str, Tensor]] | None,
        stretched: bool = False,
        **options: Any,
    ) -> Any:
        """One forward of the detector; whoever listens to a tap gets its value."""
        masks = {}
        if self.family.masks:
            mask = torch.ones_like(pixels[:, 0], dtype=torch.long) if padding is None else (~padding).long()
            masks["pixel_mask"] = mask
        read = [name for name, tap in self.taps.items() if tap.is_read]
        with recorded(self.detector, self._reader.paths if read else ()) as seen:
            output = self.detector(pixel_values=pixels, labels=labels, **masks, **options)
        for name in read:
            self.taps[name](self._reader.read(name, output, seen, padding, stretched))
        return output

    def _losses(self, output: Any) -> dict[str, Tensor]:
        losses = self.family.losses(self.detector.config, output.loss_dict)
        embedding = getattr(self.detector.base_model, "denoising_class_embed", None)
        if embedding is not None and output.denoising_meta_values is None:
            # A batch without objects has nothing to denoise; data-parallel training wants a gradient all the same.
            first = next(iter(losses))
            losses[first] = losses[first] + 0.0 * embedding.weight.sum()
        if not self._sum_checked:
            self._check_sum(sum(value.detach() for value in losses.values()), output.loss.detach())
        return losses

    def _check_sum(self, total: Any, own: Tensor) -> None:
        """Once, since a later transformers may weigh its losses otherwise."""
        if abs(float(total) - float(own)) > 1e-3 * max(1.0, abs(float(own))):
            import transformers

            raise IncompatibleModelsError(
                f"{type(self.detector).__name__} of transformers {transformers.__version__} has a loss of "
                f"{float(own):.6g}, but its parts sum to {float(total):.6g}: this version weighs them in a way that "
                "mokd_det does not know"
            )
        self._sum_checked = True

    def detect_tensors(self, pixels: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes for :meth:`detections` from normalised pixels (B, 3, H, W) and a padding mask (B, H, W)."""
        return self._reader.predictions(self._run(pixels, padding if self.family.masks else None, None))

    def detections(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best of what the queries predict, as transformers' post-processing chooses it, scores descending.

        Args:
            logits: (B, N, K), or (B, N, K + 1) of a softmax.
            boxes: (B, N, 4) cxcywh relative to the image.
            sizes: (height, width) of each original image, (B, 2).

        Returns:
            scores (B, D), labels (B, D) and boxes (B, D, 4) x1, y1, x2, y2 in pixels of the original image.
        """
        if not self.family.softmax:
            return top_predictions(logits, boxes, sizes, self.topk)
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, order = scores.topk(min(self.topk, scores.shape[1]), dim=1)
        picked = cxcywh_to_xyxy(boxes).gather(1, order[..., None].expand(-1, -1, 4))
        height, width = sizes.to(picked).unbind(1)
        scale = torch.stack((width, height, width, height), 1)
        return scores, labels.gather(1, order), picked * scale[:, None]

    def postprocess(
        self, logits: Tensor, boxes: Tensor, batched_inputs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Instances]]:
        """Detections in pixels of each original image."""
        sizes = original_sizes(batched_inputs)
        on_device = torch.tensor(sizes).to(self.device, non_blocking=True)
        return as_instances(sizes, *self.detections(logits.float(), boxes.float(), on_device))

    @torch.no_grad()
    def inspect(self, batched_inputs: Sequence[dict[str, Any]], **options: Any) -> Inspection:
        """What transformers' model says of images, for looking into it.

        ``options`` are its forward's, such as ``output_attentions=True``.
        """
        pixels, padding, stretched = self.preprocess(batched_inputs)
        sizes = [
            tuple(item["image"].shape[-2:]) if self.image_size is None else self.image_size
            for item in batched_inputs
        ]
        output = self._run(pixels, padding, None, stretched, **options)
        logits, boxes = self._reader.predictions(output)
        return Inspection(
            output, class_logits(logits, self.family.softmax), boxes, tuple(pixels.shape[-2:]), sizes
        )

    # --- transformers' formats ---------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> bool:
        """Write configuration, weights (safetensors) and image processor to a folder, as transformers loads them."""
        with quiet():
            self.detector.save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text(
            json.dumps(self.processor_settings(), indent=2) + "\n", encoding="utf-8"
        )
        return True

    def processor_settings(self) -> dict[str, Any]:
        """What transformers' image processor needs to do as this model does."""
        mean, std = (
            buffer.flatten().double().div(255).tolist() for buffer in (self.pixel_mean, self.pixel_std)
        )
        normalizes = not (mean == [0.0] * 3 and std == [1.0] * 3)
        settings = {
            "image_processor_type": self.family.processor,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": normalizes,
            "do_resize": True,
            "do_pad": self.image_size is None and self.family.masks,
            "resample": 2,
            "size": {"shortest_edge": 800, "longest_edge": 1333},
        }
        if normalizes:
            settings |= {"image_mean": [round(x, 6) for x in mean], "image_std": [round(x, 6) for x in std]}
        if self.image_size is not None:
            settings["size"] = {"height": self.image_size[0], "width": self.image_size[1]}
        return settings


@dataclass(frozen=True)
class _FullPrecision:
    """A loss of transformers in float32, whatever the forward is in: logarithms of half precision end in infinity."""

    criterion: Any

    def __call__(self, logits: Tensor, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(logits.device.type, enabled=False):
            named = {name: _float(value) for name, value in named.items()}
            return self.criterion(_float(logits), *map(_float, arguments), **named)


def _float(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _resized(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """As transformers' processors resize: bilinear with antialiasing, uint8 stays uint8; RF-DETR's floats without."""
    from torchvision.transforms.v2 import functional as image_functions

    if tuple(image.shape[-2:]) == size:
        return image
    return image_functions.resize(image if antialias else image.float(), list(size), antialias=antialias)


def _image_size(
    family: Family, config: Any, processor: Mapping[str, Any], asked: Any
) -> tuple[int, int] | None:
    """The size that images are resized to, checked against what the model can take."""
    origin = "image_size"
    if asked == "auto":
        _check_processor(family, processor)
        asked, origin = family.default_size(config), f"the {config.model_type} family's size"
        stated = processor.get("size")
        if (
            isinstance(stated, Mapping)
            and {"height", "width"} <= set(stated)
            and processor.get("do_resize", True)
        ):
            asked, origin = (stated["height"], stated["width"]), "preprocessor_config.json: size"
    if asked is None:
        return None
    size = (asked, asked) if isinstance(asked, int) else tuple(int(side) for side in asked)
    divisor = family.divisor(config)
    if len(size) != 2 or min(size) < 1 or any(side % divisor for side in size):
        raise ConfigError(
            f"{origin}={'×'.join(map(str, size))}: {config.model_type} takes (height, width) in multiples of "
            f"{divisor}, such as {divisor * max(1, round(max(size) / divisor))}"
        )
    if family.is_square(config) and size[0] != size[1]:
        raise ConfigError(
            f"{origin}={'×'.join(map(str, size))}: {config.model_type} with windows takes squares only"
        )
    return size


def _check_processor(family: Family, processor: Mapping[str, Any]) -> None:
    kind = str(processor.get("image_processor_type", processor.get("feature_extractor_type", "")))
    known = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    related = ("", "DetrImageProcessor", "DeformableDetrImageProcessor", "RTDetrImageProcessor")
    if known not in (family.processor, *related):
        raise ConfigError(
            f"preprocessor_config.json contradicts config.json: it is of a {kind}, the model needs a "
            f"{family.processor}; give image_size, pixel_mean and pixel_std to overrule it"
        )
    if processor.get("do_rescale", True) is False:
        raise ConfigError(
            "preprocessor_config.json has do_rescale=false, but the pixels here are 0..255; give pixel_mean and "
            "pixel_std"
        )


def _statistics(
    family: Family, processor: Mapping[str, Any], mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB in 0..1."""
    normalizes = processor.get("do_normalize", family.normalizes)
    default: tuple[Sequence[float], Sequence[float]] = ((0.0,) * 3, (1.0,) * 3)
    if normalizes:
        default = processor.get("image_mean") or IMAGENET_MEAN, processor.get("image_std") or IMAGENET_STD
    chosen = [
        list(map(float, given if given is not None else known)) for given, known in zip((mean, std), default)
    ]
    if any(len(numbers) != 3 for numbers in chosen) or min(chosen[1]) <= 0:
        raise ConfigError(
            f"pixel_mean={chosen[0]} and pixel_std={chosen[1]} must have 3 numbers each, std above 0"
        )
    return chosen[0], chosen[1]
