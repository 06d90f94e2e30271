"""Seven stages: tiny VAE, teacher, causal initialisation, distillation, cutter, plate, finish. Core dependencies only."""
from .pipeline import main

__all__ = ["main"]
