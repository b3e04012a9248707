"""The training child: model, loss, optimizer, evaluation, checkpoint commit, metrics out by pipe."""
