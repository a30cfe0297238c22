"""What ``bert-fast bench`` measures, a section a file: ``run(settings)`` yields rows, ``ours(settings)`` calls of ours.

A row is a flat dictionary with what was measured, beside whom and how; the reports read nothing else.
"""

NAMES = ("kernels", "model", "latency", "training", "scaling", "scenario")
