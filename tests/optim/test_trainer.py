"""The transformers Trainer trains with every optimizer, and resumes."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from models.conftest import make as build
from models.conftest import tokens
from nestling.optim import param_groups

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory:UserWarning"
)


def train(make, folder, steps, resume=None):
    """A tiny model after so many steps, of which a checkpoint is kept after each."""
    torch.manual_seed(0)
    model = build("transformer++")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_steps=1,
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 12)]
    optimizer = make(param_groups(model), lr=1e-2)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, optimizers=(optimizer, None))
    assert trainer.train(resume_from_checkpoint=resume).global_step == steps
    return [p.detach().clone() for p in model.parameters()]


def test_trainer_resumes_where_it_was(make, tmp_path):
    straight = train(make, tmp_path / "one", 4)
    train(make, tmp_path / "two", 2)
    resumed = train(make, tmp_path / "two", 4, str(tmp_path / "two" / "checkpoint-2"))
    for a, b in zip(straight, resumed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
