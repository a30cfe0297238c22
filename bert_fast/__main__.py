"""`python -m bert_fast` is `bert-fast`."""

import sys

from bert_fast.cli import main

sys.exit(main())
