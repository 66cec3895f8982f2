"""Networks for 32 x 32 inputs, the paper's and a shallower one, registered with timm.

``preact_resnet18`` (11.17 M parameters with ten classes; pre-activation blocks and a final norm, He et al., 2016),
``wide_resnet34_10`` (46.16 M; the paper says WideResNet32, its code has depth 34 and width 10; Zagoruyko and
Komodakis, 2016), and ``cifar_resnet18`` (11.17 M; post-activation, what the paper's code runs under the name ResNet18).
``preact_resnet10`` (4.90 M) and ``preact_resnet10_small`` (2.76 M) are not in the paper: one block a stage, for
searches on CPUs. All of them start with a 3 x 3 convolution, of stride 1 but for the small one's, without pooling.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torch.nn import functional


class PreActBlock(nn.Module):
    """Norm, ReLU, 3 x 3 convolution, twice; a 1 x 1 convolution on the shortcut where the shape changes."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_chs, H, W) to (N, out_chs, H / stride, W / stride)."""
        activated = functional.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv1(activated)
        return self.conv2(functional.relu(self.norm2(out))) + shortcut


class PreActResNet(nn.Module):
    """Stages of pre-activation blocks with timm's model interface; wide residual networks are of this form too."""

    def __init__(
        self,
        stem_width: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = widths[-1]
        self.stem = nn.Conv2d(in_chans, stem_width, 3, stem_stride, 1, bias=False)
        self.feature_info: list[dict[str, Any]] = []
        stages, chs, reduction = [], stem_width, stem_stride
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stride = 1 if index == 0 else 2
            blocks = [PreActBlock(chs, width, stride), *(PreActBlock(width, width, 1) for _ in range(depth - 1))]
            stages.append(nn.Sequential(*blocks))
            chs, reduction = width, reduction * stride
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(chs)
        self.head = ClassifierHead(chs, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a new one of ``num_classes`` outputs."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image batch to features of shape (N, num_features, H', W')."""
        return functional.relu(self.norm(self.stages(self.stem(x))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features to logits (N, num_classes), or to pooled features before the last layer."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image batch (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class CifarResNet(ResNet):
    """timm's ResNet with a 3 x 3 stem of stride 1 and no pooling behind it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        stem = nn.Conv2d(kwargs.get("in_chans", 3), 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())
        for info in cast(list[dict[str, Any]], self.feature_info):
            info["reduction"] = max(1, info["reduction"] // 4)


def _cfg(first_conv: str, classifier: str, side: int) -> dict[str, Any]:
    """Return what timm asks of a network's configuration; ``side`` is that of the last feature maps at 32 x 32."""
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (side, side),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.491, 0.482, 0.447),
        "std": (0.247, 0.243, 0.262),
        "first_conv": first_conv,
        "classifier": classifier,
    }


def _features(stages: Iterable[int]) -> dict[str, Any]:
    return {"out_indices": tuple(stages), "flatten_sequential": True}


default_cfgs = generate_default_cfgs(
    {
        "preact_resnet10.untrained": _cfg("stem", "head.fc", 4),
        "preact_resnet10_small.untrained": _cfg("stem", "head.fc", 2),
        "preact_resnet18.untrained": _cfg("stem", "head.fc", 4),
        "wide_resnet34_10.untrained": _cfg("stem", "head.fc", 8),
        "cifar_resnet18.untrained": _cfg("conv1", "fc", 4),
    }
)


@register_model
def preact_resnet10(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-10 for 32 x 32 inputs: one block a stage, not in the paper."""
    arguments = {"stem_width": 64, "widths": (64, 128, 256, 512), "depths": (1, 1, 1, 1), **kwargs}
    return build_model_with_cfg(
        PreActResNet, "preact_resnet10", pretrained, feature_cfg=_features(range(4)), **arguments
    )


@register_model
def preact_resnet10_small(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-10 of three quarters of the widths behind a stem of stride 2, a seventh of its multiplications."""
    widths = (48, 96, 192, 384)
    arguments = {"stem_width": 48, "widths": widths, "depths": (1, 1, 1, 1), "stem_stride": 2, **kwargs}
    return build_model_with_cfg(
        PreActResNet, "preact_resnet10_small", pretrained, feature_cfg=_features(range(4)), **arguments
    )


@register_model
def preact_resnet18(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-18 for 32 x 32 inputs, the paper's ResNet18."""
    arguments = {"stem_width": 64, "widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), **kwargs}
    return build_model_with_cfg(
        PreActResNet, "preact_resnet18", pretrained, feature_cfg=_features(range(4)), **arguments
    )


@register_model
def wide_resnet34_10(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """WideResNet-34-10 for 32 x 32 inputs, the paper's WideResNet32."""
    arguments = {"stem_width": 16, "widths": (160, 320, 640), "depths": (5, 5, 5), **kwargs}
    return build_model_with_cfg(
        PreActResNet, "wide_resnet34_10", pretrained, feature_cfg=_features(range(3)), **arguments
    )


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Post-activation ResNet-18 for 32 x 32 inputs, which the paper's own code runs."""
    arguments = {"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs}
    return build_model_with_cfg(CifarResNet, "cifar_resnet18", pretrained, **arguments)
