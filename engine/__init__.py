"""The training child: model, loss, optimizer, evaluation, checkpoint commit, metrics out by pipe.

Importing any of it makes idle OpenMP threads sleep instead of spin, which has to be said before
torch loads libgomp. On two cores that others also use, spinning made a step of the toy model 15
times slower (docs/engine.md).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
