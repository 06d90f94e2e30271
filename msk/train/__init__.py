"""The four stages: tiny VAE, teacher, causal initialisation, distillation. Core dependencies only."""
from .pipeline import main

__all__ = ["main"]
