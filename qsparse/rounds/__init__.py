"""The loops of a run."""
