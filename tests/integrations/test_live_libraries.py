"""Accelerated models in the hands of PEFT, of transformers' Trainer and pipelines, and of sentence-transformers."""

import warnings

import pytest
import torch
import transformers
from integrations.families import VOCAB, B, S, batch, encoder_of, every_kind_of_padding, labels, model
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import bert_fast

NAME = "BertForSequenceClassification"
TEXTS = ["a b c", "d", "e f g h i j k", "a a", "k j i h g f e d c b a", "b c"]


def logits(net, name=NAME):
    return net(**batch(name, every_kind_of_padding())).logits


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=S, **specials)


def saved(folder, name):
    model(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


class TestPeft:
    """LoRA's layers stand where linear layers stood: they have to be called, not read."""

    @pytest.fixture(autouse=True)
    def _peft(self):
        self.peft = pytest.importorskip("peft")

    def adapted(self, net, dropout=0.0):
        config = self.peft.LoraConfig(
            r=4, lora_alpha=16, lora_dropout=dropout, target_modules=["query", "value", "dense"],
            init_lora_weights=False, task_type="SEQ_CLS",
        )  # fmt: skip
        torch.manual_seed(5)
        return self.peft.get_peft_model(net, config)

    @pytest.mark.parametrize("first", ["accelerate", "peft"])
    def test_trains_and_merges_the_same(self, first):
        if first == "accelerate":
            fast = self.adapted(bert_fast.accelerate(model(NAME)))
        else:
            fast = bert_fast.accelerate(self.adapted(model(NAME)))
        slow = self.adapted(model(NAME))
        losses = []
        for net in (fast, slow):
            optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
            losses.append([])
            for _ in range(3):
                loss = net.train()(**batch(NAME, every_kind_of_padding()), **labels(NAME)).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[-1].append(loss.item())
            net.eval()
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-3)
        with torch.no_grad():
            want = logits(slow)
            torch.testing.assert_close(logits(fast), want, rtol=1e-3, atol=1e-3)
            with fast.disable_adapter(), slow.disable_adapter():
                torch.testing.assert_close(logits(fast), logits(slow), rtol=1e-3, atol=1e-3)
            for net in (fast, slow):
                net.merge_adapter()
            torch.testing.assert_close(logits(fast), want, rtol=1e-3, atol=1e-3)
            merged = fast.unmerge_adapter() or fast.merge_and_unload()
            torch.testing.assert_close(logits(merged), want, rtol=1e-3, atol=1e-3)
        assert encoder_of(fast).accelerated >= 7 and not encoder_of(fast).reasons

    def test_prompt_tuning_hands_embeddings(self):
        config = self.peft.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
        slow = self.peft.get_peft_model(model(NAME), config)
        fast = self.peft.get_peft_model(bert_fast.accelerate(model(NAME)), config)
        fast.load_state_dict(slow.state_dict())
        given = batch(NAME, every_kind_of_padding())
        given.pop("token_type_ids")
        want = slow.eval()(**given).logits
        torch.testing.assert_close(fast.eval()(**given).logits, want, rtol=1e-4, atol=1e-4)
        assert encoder_of(fast).accelerated == 1


class TestTransformers:
    def test_trainer(self, tmp_path):
        pytest.importorskip("accelerate")
        rows = [
            {"input_ids": torch.randint(4, VOCAB, (n,)).tolist(), "labels": n % 2}
            for n in torch.randint(3, S, (24,), generator=torch.Generator().manual_seed(1)).tolist()
        ]
        histories = []
        for fast in (True, False):
            net = model(NAME)
            if fast:
                bert_fast.accelerate(net)
            arguments = transformers.TrainingArguments(
                str(tmp_path / str(fast)), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-3,
                logging_steps=1, eval_strategy="epoch", save_strategy="epoch", report_to="none", use_cpu=True,
            )  # fmt: skip
            collator = transformers.DataCollatorWithPadding(tokenizer())
            trainer = transformers.Trainer(
                net, arguments, data_collator=collator, train_dataset=rows, eval_dataset=rows[:8]
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="bert_fast")
                trainer.train()
            histories.append([h[k] for h in trainer.state.log_history for k in ("loss", "eval_loss") if k in h])
            again = type(net).from_pretrained(tmp_path / str(fast) / "checkpoint-12")
            torch.testing.assert_close(logits(again.eval()), logits(net.eval()), rtol=1e-4, atol=1e-4)
        assert len(histories[0]) == 14
        assert histories[0] == pytest.approx(histories[1], rel=1e-3)

    def test_pipeline(self, tmp_path):
        pipe = transformers.pipeline("text-classification", saved(tmp_path, NAME), device="cpu")
        want = pipe(TEXTS, batch_size=4)
        bert_fast.accelerate(pipe.model)
        for got, expected in zip(pipe(TEXTS, batch_size=4), want, strict=True):
            assert got["label"] == expected["label"]
            assert got["score"] == pytest.approx(expected["score"], rel=1e-4)
        assert encoder_of(pipe.model).accelerated > 0


class TestSentenceTransformers:
    @pytest.fixture(autouse=True)
    def _library(self):
        self.library = pytest.importorskip("sentence_transformers")

    @pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
    def test_encode(self, tmp_path, pooling):
        from sentence_transformers.models import Pooling, Transformer

        transformer = Transformer(saved(tmp_path, "BertModel"))
        net = self.library.SentenceTransformer(modules=[transformer, Pooling(48, pooling)], device="cpu")
        want = net.encode(TEXTS, batch_size=3)
        tokens = net.encode(TEXTS, batch_size=3, output_value="token_embeddings")
        bert_fast.accelerate(net)
        assert abs(net.encode(TEXTS, batch_size=3) - want).max() < 1e-4
        for got, expected in zip(net.encode(TEXTS, batch_size=3, output_value="token_embeddings"), tokens, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        live = encoder_of(net)
        assert live.positions.hidden_positions == "zero" and live.accelerated == 4 and not live.reasons
        (report,) = bert_fast.verify(net, TEXTS)
        assert report.held and report.own_code is None
        page = bert_fast.explain(net)
        assert any(row.op == "attention" for row in page.choices)
        (record,) = page.encoders
        assert record.module.startswith("0.") and "read under the mask" in record.why
        assert record.accelerated == 4 and 0 < record.padding < 1
        assert abs(bert_fast.restore(net).encode(TEXTS, batch_size=3) - want).max() < 1e-6

    def test_trainer(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        pytest.importorskip("accelerate")
        from sentence_transformers.losses import MultipleNegativesRankingLoss
        from sentence_transformers.models import Pooling, Transformer

        rows = datasets.Dataset.from_dict({"anchor": TEXTS * 2, "positive": (TEXTS[1:] + TEXTS[:1]) * 2})
        folder, losses = saved(tmp_path / "model", "BertModel"), []
        for fast in (True, False):
            net = self.library.SentenceTransformer(modules=[Transformer(folder), Pooling(48)], device="cpu")
            if fast:
                bert_fast.accelerate(net)
            arguments = self.library.SentenceTransformerTrainingArguments(
                str(tmp_path / str(fast)), per_device_train_batch_size=4, num_train_epochs=1, logging_steps=1,
                report_to="none", use_cpu=True, save_strategy="no",
            )  # fmt: skip
            loss = MultipleNegativesRankingLoss(net)
            trainer = self.library.SentenceTransformerTrainer(net, arguments, train_dataset=rows, loss=loss)
            trainer.train()
            losses.append([h["loss"] for h in trainer.state.log_history if "loss" in h])
        assert len(losses[0]) == 3
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_cross_encoder(self, tmp_path):
        net = self.library.CrossEncoder(saved(tmp_path, NAME), device="cpu")
        pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
        want = net.predict(pairs, batch_size=B)
        bert_fast.accelerate(net)
        assert abs(net.predict(pairs, batch_size=B) - want).max() < 1e-4
        live = encoder_of(net)
        assert live.positions.hidden_positions == "zero" and live.accelerated == 1 and not live.reasons
