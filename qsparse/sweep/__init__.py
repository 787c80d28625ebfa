"""The methods of a figure over one model and data set: many runs of ``qsparse train``, one table.

A sweep is data (`methods`): the published names of methods, and the options of ``qsparse train`` that make
each. Every run is ``qsparse train`` in a process of its own (`running`), and what is shown at the end is
made of the files that those runs left behind, and of nothing else (`measured`).
"""
