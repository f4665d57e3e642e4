"""The peer: a plain PyTorch loop of masked training, as one would write it without lthjax.

Same architecture, Adam, mask, batches from uint8 images in memory, and the same order of work in a
study: dense, then for every level prune, rewind, train every arm, one after another.
"""

import numpy as np
import torch
from torch import nn

_POOLED = {
    "small_cnn": ((16, 32), (128,)),
    "conv2": ((64,), (256, 256)),
    "conv4": ((64, 128), (256, 256)),
    "conv6": ((64, 128, 256), (256, 256)),
}


def build(name: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    """The PyTorch twin of a model of `lthjax.models`."""
    height, width, channels = shape
    if name == "lenet300":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(height * width * channels, 300), nn.ReLU(),
            nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, classes),
        )  # fmt: skip
    if name == "lenet5":
        flat = 16 * (height // 2 - 4) // 2 * ((width // 2 - 4) // 2)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
        )  # fmt: skip
    pairs, widths = _POOLED[name]
    layers: list[nn.Module] = []
    for features in pairs:
        for before in (channels, features):
            layers += [nn.Conv2d(before, features, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, height, width = features, height // 2, width // 2
    layers.append(nn.Flatten())
    inputs = channels * height * width
    for features in widths:
        layers += [nn.Linear(inputs, features), nn.ReLU()]
        inputs = features
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


class Loop:
    """A masked training in PyTorch.

    Args:
        name: the model's name.
        images: uint8 [N, H, W, C].
        labels: integers [N].
        batch: images in a batch.
        lr: learning rate of Adam.
        mean, std: of the pixels.
        device: "cpu" or "cuda".
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
        device: str = "cpu",
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
        """A fresh optimiser."""
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=self.lr)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """Normalised images."""
        return (self.images[index].float() / 255 - self.mean) / self.std

    def train(self, order: np.ndarray) -> None:
        """One step for every row of the order."""
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
