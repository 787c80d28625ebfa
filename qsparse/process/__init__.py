"""The life of a process: what started it, who watches it, how it is asked to stop, how it ends."""
