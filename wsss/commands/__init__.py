"""The tools besides the pipeline: a module for each of ``wsss score, predict, export, explain, data, networks``.

Its ``main`` takes the words after the command and returns the exit status. Nothing heavy is imported before they are
parsed.
"""
