"""How recipes are searched, recorded, compared and promoted; the command line is `orch`.

The same from Python: `orchestrator.sweep(recipe="cnn", trials=50)`, see `orchestrator.notebook`.
"""

from orchestrator.notebook import StudyResults, contrast, open_study, resume, sweep, train

__all__ = ["StudyResults", "contrast", "open_study", "resume", "sweep", "train"]
