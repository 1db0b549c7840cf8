"""Using a trained model: accuracy on a set of images, classes of single files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlib.data import LabeledImages, read_image
from vitlib.device import pick
from vitlib.errors import UserError
from vitlib.evaluate import predict
from vitlib.progress import Progress
from vitlib.rng import derive
from vitlib.weights import Trained


def _logits(trained: Trained, images: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "predict"))  # the original's attention is noisy in evaluation, too
        return predict(trained.model.to(pick()), images, device=pick(), normalize=trained.recipe.normalize)


def evaluate_images(trained: Trained, images: LabeledImages) -> dict[str, Any]:
    """Return ``accuracy`` (0-1), the number of ``images`` and ``per_class`` accuracy by class name.

    A class without images has the accuracy None. Labels index ``trained.class_names``.
    """
    correct = _logits(trained, images.images).argmax(1) == images.labels
    parts = {name: correct[images.labels == label] for label, name in enumerate(trained.class_names)}
    per_class = {name: float(mine.double().mean()) if len(mine) else None for name, mine in parts.items()}
    return {"accuracy": float(correct.double().mean()), "images": len(images), "per_class": per_class}


def predict_files(trained: Trained, paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return per image its path, the likeliest class, its confidence (0-1) and all probabilities by class name.

    Beside them, a sentence for each file that is no readable image: the others are told all the same. Where the model answers with NaN, as the original does now and then, all are 0 and the class is the first.
    """
    rows, faults = [], []
    with Progress(len(paths), "识别", unit="张", show=len(paths) > 100) as progress:
        for path in paths:
            progress.advance()
            try:
                image = read_image(path, trained.image_size)
            except UserError as error:
                faults.append(str(error))
                continue
            probabilities = _logits(trained, image[None]).softmax(1)[0].nan_to_num()
            chances = dict(zip(trained.class_names, probabilities.tolist(), strict=True))
            likeliest, sure = max(chances.items(), key=lambda item: item[1])
            rows.append({"image": str(path), "class": likeliest, "confidence": sure, "probabilities": chances})
    return rows, faults
