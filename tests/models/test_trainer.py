"""The transformers Trainer trains every model."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from models.conftest import make, tokens


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory:UserWarning")
def test_trainer_takes_two_steps(name, tmp_path):
    model = make(name)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 24)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:2])
    assert trainer.train().global_step == 2
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
