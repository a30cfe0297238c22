"""What can run here, why not the rest, and whether what runs is right: `bert-fast doctor`."""

from bert_fast.doctor.report import examine, render

__all__ = ["examine", "render"]
