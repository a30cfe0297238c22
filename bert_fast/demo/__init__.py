"""`bert-fast demo`: a trained model on real sentences, its numbers and its speed beside `transformers`."""

from bert_fast.demo.run import DemoError, run_demo

__all__ = ["DemoError", "run_demo"]
