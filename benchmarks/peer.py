"""The peer: a plain PyTorch loop of masked training, as written without lthjax.

Architecture, Adam, masks, batches from uint8 images in memory, and the order of work in a study are the
same: dense, then for every level prune, rewind, and train every arm, one after another.
"""

import jax
import numpy as np
import torch
from torch import nn

from lthjax import models


def device() -> str:
    """The peer's device: of the same kind as JAX's, so that both sides use the same device."""
    kind = {"gpu": "cuda", "cpu": "cpu"}.get(jax.default_backend())
    if kind is None or (kind == "cuda" and not torch.cuda.is_available()):
        raise SystemExit(
            f"PyTorch {torch.__version__} cannot use JAX's device ({jax.default_backend()}); install a build "
            "that can, or set JAX_PLATFORMS=cpu."
        )
    return kind


def build(name: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    """The PyTorch twin of a sequential model of `lthjax.models`."""
    height, width, inputs = shape
    modules: list[nn.Module] = []
    *hidden, output = models.MODELS[name].layers(classes)
    for layer in hidden:
        if layer.size:
            padding = layer.size // 2 if layer.padding == "SAME" else 0
            modules += [nn.Conv2d(inputs, layer.features, layer.size, padding=padding), nn.ReLU()]
            lost = layer.size - 1 - 2 * padding
            height, width = height - lost, width - lost
        else:
            # The first dense layer reads the image flattened.
            modules += [nn.Flatten()] if height * width else []
            modules += [nn.Linear(inputs * (height * width or 1), layer.features), nn.ReLU()]
            height = width = 0
        if layer.pool:
            modules.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        inputs = layer.features
    return nn.Sequential(*modules, nn.Linear(inputs, output.features))


class Loop:
    """Masked training in PyTorch.

    Args:
        name: the model's name.
        images: uint8 [N, H, W, C].
        labels: integers [N].
        batch: images in a batch.
        lr: learning rate of Adam.
        mean, std: of the pixels.
        device: "cpu" or "cuda"; see `device`.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        batch: int,
        lr: float,
        mean: np.ndarray,
        std: np.ndarray,
        device: str,
    ) -> None:
        self.device = device
        self.images = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)
        self.labels = torch.tensor(labels.astype(np.int64), device=device)
        self.mean = torch.tensor(mean, device=device).reshape(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).reshape(1, -1, 1, 1)
        self.model = build(name, images.shape[1:]).to(device)  # type: ignore[arg-type]
        for layer in self.weights():
            nn.init.xavier_normal_(layer)
        self.batch, self.lr = batch, lr
        self.masks = [torch.ones_like(w) for w in self.weights()]
        self.reset()

    def weights(self) -> list[torch.Tensor]:
        """The prunable weights."""
        return [p for p in self.model.parameters() if p.ndim >= 2]

    def reset(self) -> None:
        """Resets the optimiser."""
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=self.lr)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """Normalised images."""
        return (self.images[index].float() / 255 - self.mean) / self.std

    def train(self, order: np.ndarray) -> None:
        """Trains one step per row of the order."""
        rows = torch.tensor(order, device=self.device, dtype=torch.int64)
        with torch.no_grad():
            for weight, mask in zip(self.weights(), self.masks, strict=True):
                weight.mul_(mask)
        for index in rows:
            loss = nn.functional.cross_entropy(self.model(self.gather(index)), self.labels[index])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            with torch.no_grad():
                for weight, mask in zip(self.weights(), self.masks, strict=True):
                    assert weight.grad is not None
                    weight.grad.mul_(mask)
            self.optimiser.step()
            with torch.no_grad():
                for weight, mask in zip(self.weights(), self.masks, strict=True):
                    weight.mul_(mask)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def evaluate(self, index: np.ndarray, batch: int = 500) -> tuple[float, float]:
        """(mean loss, accuracy) on these images."""
        loss = right = 0.0
        with torch.no_grad():
            for part in torch.tensor(index, device=self.device, dtype=torch.int64).split(batch):
                logits = self.model(self.gather(part))
                loss += float(nn.functional.cross_entropy(logits, self.labels[part], reduction="sum"))
                right += float((logits.argmax(1) == self.labels[part]).sum())
        return loss / len(index), right / len(index)

    def prune(self, rates: list[float]) -> None:
        """Removes the share of the smallest surviving weights of every layer."""
        for i, (weight, rate) in enumerate(zip(self.weights(), rates, strict=True)):
            alive = self.masks[i] > 0
            count = round(rate * int(alive.sum()))
            if count:
                threshold = weight.detach().abs()[alive].kthvalue(count).values
                self.masks[i] = (alive & (weight.detach().abs() > threshold)).float()
