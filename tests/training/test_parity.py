"""Same data, weights and optimizer, no dropout: the losses of transformers, wherever our pieces are put."""

import pytest
import torch
from tiny_training import NO_DROPOUT, SIZES, pretraining_batch, texts

import bert_fast
from bert_fast.training import AdamW, fit, linear_schedule, parameter_groups

transformers = pytest.importorskip("transformers")
STEPS = 50


def twins(kind, tmp_path, **settings):
    """transformers' model and ours, with its weights."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, **NO_DROPOUT, initializer_range=0.1, **settings)
    theirs = getattr(transformers, kind)(config)
    theirs.save_pretrained(tmp_path)
    return theirs.train(), getattr(bert_fast, kind).from_pretrained(tmp_path)


def padded(batch):
    """A packed batch as transformers takes it."""
    inputs = batch["input_ids"]
    rows = torch.tensor_split(inputs.input_ids, inputs.cu_seqlens[1:-1].tolist())
    columns = {"input_ids": rows, "attention_mask": [torch.ones_like(row) for row in rows]}
    fillers = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    if len(batch["labels"]) == len(inputs.input_ids):
        columns["labels"] = torch.tensor_split(batch["labels"], inputs.cu_seqlens[1:-1].tolist())
    made = {
        name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fillers[name])
        for name, values in columns.items()
    }
    return {**batch, **made}


def classification_batches():
    rows = texts(4 * STEPS)
    groups = [rows[4 * k : 4 * k + 4] for k in range(STEPS)]
    labels = [torch.tensor([int(row.sum()) % 3 for row in group]) for group in groups]
    packed = [bert_fast.PackedBatch.from_sequences(group) for group in groups]
    return [{"input_ids": p, "labels": y} for p, y in zip(packed, labels, strict=True)]


def pretraining_batches():
    rows = texts(4 * STEPS)
    return [pretraining_batch(rows[4 * k : 4 * k + 4], k) for k in range(STEPS)]


def losses_of_transformers(model, batches, lr=1e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 10, STEPS)
    losses = []
    for batch in batches:
        loss = model(**padded(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


CASES = {
    "classification": ("BertForSequenceClassification", classification_batches, {"num_labels": 3}),
    "MLM and NSP": ("BertForPreTraining", pretraining_batches, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_are_those_of_transformers(tmp_path, case):
    """fit with our AdamW, against a plain loop with PyTorch's."""
    kind, make, settings = CASES[case]
    theirs, ours = twins(kind, tmp_path, **settings)
    batches, lines = make(), []
    optimizer = AdamW(ours.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = linear_schedule(optimizer, 10, STEPS)
    options = {"max_grad_norm": 1.0, "log_every": 1, "callbacks": [lines.append]}
    fit(ours, batches, optimizer, schedule, steps=STEPS, **options)
    expected = losses_of_transformers(theirs, batches)
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-4)
    assert abs(expected[-1] - expected[0]) > 0.01


def test_a_loop_of_ones_own(tmp_path):
    """Our model, optimizer and packed batches are ordinary PyTorch."""
    theirs, ours = twins("BertForPreTraining", tmp_path)
    batches = pretraining_batches()[:15]
    expected = losses_of_transformers(theirs, batches)
    optimizer = AdamW(ours.parameters(), lr=1e-3, weight_decay=0.01, max_grad_norm=1.0)
    schedule = linear_schedule(optimizer, 10, STEPS)
    losses = []
    for batch in batches:
        loss = ours(**batch, return_logits=False).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-4)


class _Listed(torch.utils.data.Dataset):
    """A data set whose items are batches already."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, k):
        return self.batches[k]


@pytest.mark.parametrize("form", ["packed", "padded"])
def test_our_model_in_the_trainer_of_transformers(tmp_path, form):
    """As its own model trains there, with packed batches too, for which Trainer takes a data set of batches."""
    theirs, ours = twins("BertForSequenceClassification", tmp_path / "model", num_labels=3)
    batches = classification_batches()[:8]

    def losses(model, given):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            per_device_train_batch_size=1,
            max_steps=8,
            learning_rate=1e-3,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            train_sampling_strategy="sequential",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=_Listed(given), data_collator=lambda items: items[0]
        )
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    given = batches if form == "packed" else [padded(batch) for batch in batches]
    expected = losses(theirs, [padded(batch) for batch in batches])
    found = losses(ours, given)
    assert len(found) == 8
    assert found == pytest.approx(expected, rel=2e-4)


def test_our_pieces_in_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    theirs, ours = twins("BertForPreTraining", tmp_path)
    batches, losses = pretraining_batches()[:15], []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = ours

        def training_step(self, batch, index):
            loss = self.model(**batch, return_logits=False).loss
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = AdamW(parameter_groups(self, 0.01), lr=1e-3, weight_decay=0.01)
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.01  # as PyTorch's plain AdamW in the other loop
            return [optimizer], [{"scheduler": linear_schedule(optimizer, 10, STEPS), "interval": "step"}]

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, enable_model_summary=False, **quiet
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))
    expected = losses_of_transformers(theirs, batches)
    assert losses == pytest.approx(expected, rel=1e-4)
