"""Made-up finished runs of a section of the full plan, so that a notebook's sentences can be tested on known results."""

import json

import numpy as np
import torch

from vitlib.data import load
from vitlib.device import describe
from vitlib.plans import PROFILES, jobs, tailed
from vitlib.state import Outcome, build_model
from vitlib.store import make_record
from vitlib.weights import save_weights

CPU = torch.device("cpu")


def invent(root, section, accuracy, weights=(), noise=0.2):
    """Fill a run store with runs on generated images.

    accuracy: from a job to the accuracy (0-1) that its runs have by design, None for a run that stopped at NaN, 0 for
    one that answers class 0 throughout. weights: labels whose first seed has untrained weights. noise: 0-1, how much
    of which images are right is drawn for each run, instead of by a difficulty that all runs share.
    """
    data = load("synthetic")
    difficulty = np.random.RandomState(0).random_sample(len(data.test))
    for number, job in enumerate(jobs(section, PROFILES["full"])):
        mine, source, wanted = tailed(data, job.factor), np.random.RandomState(number), accuracy(job)
        right = (1 - noise) * difficulty + noise * source.random_sample(len(difficulty)) < (wanted or 0)
        answers = torch.where(torch.from_numpy(right), mine.test.labels, (mine.test.labels + 1) % 10)
        answers = answers if wanted else torch.zeros_like(answers)
        curve = np.linspace(0.1, wanted or 0.1, job.recipe.epochs).tolist()
        watched = "test_accuracy" if job.recipe.protocol == "original" else "val_accuracy"
        history = {"train_loss": curve[::-1], "train_accuracy": curve, watched: curve} if curve else {}
        timing, logits = (
            {"train_seconds": 1.0, "images_per_second": 1.0},
            3.0 * torch.nn.functional.one_hot(answers, 10),
        )
        outcome = Outcome(history, {}, logits, None, timing, [describe(CPU)])
        if wanted is None:
            failed = {"message": "第 1 步出现非有限值。", "step": 0, "module": "blocks.0.attention"}
            outcome = Outcome({}, {}, None, failed, timing, [describe(CPU)])
        record = make_record(job.recipe, job.seed, mine, outcome)
        (root / record["key"]).mkdir(parents=True)
        (root / record["key"] / "record.json").write_text(json.dumps(record), encoding="utf-8")
        if job.seed == 0 and job.label in weights:
            torch.manual_seed(number)
            state = build_model(job.recipe, 10, 32).state_dict()
            save_weights(root / record["key"] / "weights.safetensors", state, record)
