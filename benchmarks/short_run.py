"""A whole short training run in a process of its own, from start-up to the test accuracy: ours against timm.

``python -m benchmarks.short_run ours|timm DATA IMAGES EPOCHS`` prints one JSON object. The peer is what a careful
user of timm writes: ImageFolder-like data set of PIL pictures, torchvision's transforms, DataLoader, bf16
autocast, fused AdamW. Both take the same images, epochs, batch size and augmentation (flip, crop by 4 pixels).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

BATCH = 128


def compare(source: str, images: int, epochs: int) -> dict[str, dict[str, float]]:
    """Run both, one after the other, and return seconds from start to end of the process, and what they report.

    ``source`` names the data as ``--data`` does; they have been read once before, so that neither pays for that.
    """
    out = {}
    for name in ("ours", "timm"):
        command = [sys.executable, "-m", "benchmarks.short_run", name, source, str(images), str(epochs)]
        begun = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=_importable())
        out[name] = {"seconds": time.perf_counter() - begun} | json.loads(done.stdout.splitlines()[-1])
    return out


def _importable() -> dict[str, str]:
    """Return an environment that finds this package from any folder: ``source`` may be a path from where the user is."""
    places = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def run_ours(source: str, images: int, epochs: int) -> dict[str, float]:
    """Train the modern ViT by the engine, in a folder that is thrown away."""
    from vitlib.data import load
    from vitlib.device import pick
    from vitlib.engine import Trainer
    from vitlib.recipes import VIT

    data = load(source).subset(images, min(images, 1000))
    recipe = VIT.but(protocol="refit", epochs=epochs, batch_size=BATCH)
    with TemporaryDirectory() as folder:
        outcome = Trainer(recipe, 0, data, pick(), Path(folder), show=False).run()
    assert outcome.test_logits is not None
    hits = outcome.test_logits.argmax(1) == data.test.labels
    return {"accuracy": float(hits.double().mean()), **outcome.timing}


def run_timm(source: str, images: int, epochs: int) -> dict[str, float]:
    """Train timm's model of the same shape by an ordinary loop."""
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from benchmarks.peers import build
    from vitlib.data import load
    from vitlib.device import pick

    whole, device = load(source).subset(images, min(images, 1000)), pick()
    normal = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]

    class Pictures(Dataset):
        def __init__(self, part: object, steps: list) -> None:
            pixels = part.images.permute(0, 2, 3, 1).numpy()  # type: ignore[attr-defined]
            self.pictures, self.labels = [Image.fromarray(p) for p in pixels], part.labels  # type: ignore[attr-defined]
            self.change = transforms.Compose(steps)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.change(self.pictures[index]), int(self.labels[index])

    workers = (os.cpu_count() or 1) if device.type == "cuda" else 0  # on a CPU they would fight the training
    torch.manual_seed(0)
    train = DataLoader(Pictures(whole.train, crop + normal), BATCH, True, num_workers=workers, drop_last=True)
    model = build("timm").to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    for _ in range(epochs):
        for pixels, labels in train:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = model(pixels.to(device))
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels.to(device), label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    hits = 0
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
        for pixels, labels in DataLoader(Pictures(whole.test, normal), 500):
            hits += int((model(pixels.to(device)).argmax(1).cpu() == labels).sum())
    return {"accuracy": hits / len(whole.test)}


if __name__ == "__main__":
    print(json.dumps({"ours": run_ours, "timm": run_timm}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))))
