"""The same examples in Hugging Face's Trainer: our models and theirs, through the padding collator."""

import pytest
import torch
import transformers
from training.tasks import generated

import bert_fast.models as models
from bert_fast.training.data import PackedCollator
from bert_fast.training.tasks import task_from

STEPS = 6


def trained(model, examples, kind, folder):
    """The losses of a few steps."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    collate = PackedCollator(kind, padded=True)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=examples, data_collator=lambda rows: dict(collate(rows))
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.filterwarnings("ignore:.*initialised at random")
@pytest.mark.parametrize("name", generated.ROWS)
def test_losses_are_those_of_transformers(name, tmp_path):
    base = generated.checkpoint(tmp_path / "base")
    task = task_from(name, {"stride": 4} if name == "qa" else {})
    rows = list(generated.ROWS[name](64))
    task = task.learned(task.record(row) for row in rows)
    encoded = task.encoded([task.record(row) for row in rows], generated.tokenizer(base), 64)
    examples = [example for own in encoded.examples for example in own]
    torch.manual_seed(0)
    ours = getattr(models, task.model_class).from_pretrained(base, **task.config())
    ours.save_pretrained(tmp_path / "start")
    theirs = getattr(transformers, task.model_class).from_pretrained(tmp_path / "start")
    wanted = trained(theirs, examples, task.label_kind, tmp_path / "theirs")
    got = trained(ours, examples, task.label_kind, tmp_path / "ours")
    assert len(got) == STEPS
    assert got == pytest.approx(wanted, rel=1e-4)
    assert got[-1] != got[0]
